-- Deletes the record of an upload, unless a job that has not ended needs it. Check and deletion are one script, so that
-- no job can be made in between.
--
-- keys: record, the upload by digest, jobs using it, unfinished jobs by status (three), and indexes
-- arguments: id
--
-- Returns "deleted", "in-use" or "none".

local given = cjson.decode(ARGV[1])
local record, by_digest, jobs = KEYS[1], KEYS[2], KEYS[3]
if redis.call('EXISTS', record) == 0 then return 'none' end
for i = 4, 6 do
  if #redis.call('ZINTER', 2, jobs, KEYS[i]) > 0 then return 'in-use' end
end
redis.call('DEL', record, by_digest)
for i = 7, #KEYS do redis.call('ZREM', KEYS[i], given.id) end
return 'deleted'
