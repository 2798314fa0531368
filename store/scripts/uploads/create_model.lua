-- A model of these bytes: a new one, or the one there is. One whose inspection failed for a reason that may have passed
-- is inspected again.
--
-- keys: the model by digest, the new record, models, models being inspected, references of the blob
-- arguments: id, now_ms, records, fields
--
--   records  what the keys of model records begin with
--   fields   of the new record
--
-- Returns {id, "1" if an inspection is due}.

local given = cjson.decode(ARGV[1])
local by_digest, record, models, inspecting, references = unpack(KEYS)
local known = redis.call('GET', by_digest)
if known then
  local known_record = given.records .. known
  if redis.call('HGET', known_record, 'retryable') ~= '1' then return {known, '0'} end
  redis.call('HDEL', known_record, 'retryable', 'error', 'inspections')
  redis.call('HSET', known_record, 'status', 'inspecting')
  redis.call('ZADD', inspecting, given.now_ms, known)
  return {known, '1'}
end
redis.call('SET', by_digest, given.id)
for name, value in pairs(given.fields) do redis.call('HSET', record, name, value) end
redis.call('ZADD', models, 0, given.id)
redis.call('ZADD', inspecting, given.now_ms, given.id)
redis.call('SADD', references, given.id)
return {given.id, '1'}
