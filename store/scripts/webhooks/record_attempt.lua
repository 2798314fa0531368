-- Writes down an attempt of a delivery, and when the next one is due.
--
-- arguments: prefix, webhook, delivery, attempts, status, pause_ms?
-- uses: ../clock.lua, deliveries.lua
--
--   attempts  all of them, JSON
--   pause_ms  until the next one; without it, there is none

local given = cjson.decode(ARGV[1])
local record = given.prefix .. 'delivery:' .. given.delivery
local _, due = keys_of(given.prefix, given.webhook)
if redis.call('EXISTS', record) == 1 then
  redis.call('HSET', record, 'attempts', given.attempts, 'status', given.status)
  if given.pause_ms then redis.call('ZADD', due, milliseconds() + given.pause_ms, given.delivery)
  else redis.call('ZREM', due, given.delivery) end
end
schedule(given.prefix, given.webhook)
