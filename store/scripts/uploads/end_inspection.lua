-- The verdict on a model. Only one that is still being inspected takes it.
--
-- keys: record, models being inspected
-- arguments: id, fields
--
-- Returns 1 if it was taken.

local given = cjson.decode(ARGV[1])
local record, inspecting = unpack(KEYS)
if redis.call('HGET', record, 'status') ~= 'inspecting' then return 0 end
for name, value in pairs(given.fields) do redis.call('HSET', record, name, value) end
redis.call('ZREM', inspecting, given.id)
return 1
