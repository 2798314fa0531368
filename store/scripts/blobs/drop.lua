-- A holder needs a blob no more.
--
-- keys: references of the blob, the tenant's stored bytes, holds, deletions
-- arguments: holder, sha256, hold, blob, deletion_ms
-- uses: ../clock.lua, deletions.lua
--
--   hold, blob   their names among the holds and the deletions of all tenants
--   deletion_ms  how long the deletion of the bytes may take
--
-- Returns the deadline of the deletion, which is the caller's to do; 0 if someone needs the blob, or deletes it already.

local given = cjson.decode(ARGV[1])
local references, stored, holds, deletions = unpack(KEYS)
redis.call('SREM', references, given.holder)
redis.call('ZREM', holds, given.hold)
if is_being_deleted(deletions, given.blob) then return 0 end
redis.call('ZREM', deletions, given.blob)
if redis.call('EXISTS', references) == 1 then return 0 end
local size = redis.call('HGET', stored, given.sha256)
if size then
  redis.call('HDEL', stored, given.sha256)
  redis.call('HINCRBY', stored, 'total', -size)
end
local deadline = milliseconds() + given.deletion_ms
redis.call('ZADD', deletions, digits(deadline), given.blob)
return deadline
