-- Counts the inspections of a model that were begun, and starts its time again.
--
-- keys: record, models being inspected
-- arguments: id, now_ms
--
-- Returns how many were begun; 0 if the model is not being inspected.

local given = cjson.decode(ARGV[1])
local record, inspecting = unpack(KEYS)
if redis.call('HGET', record, 'status') ~= 'inspecting' then return 0 end
redis.call('ZADD', inspecting, 'XX', given.now_ms, given.id)
return redis.call('HINCRBY', record, 'inspections', 1)
