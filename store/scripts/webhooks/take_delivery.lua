-- Leases a delivery that is due, of none of the tenants to pass over.
--
-- arguments: prefix, lease_ms, pass_over
-- uses: ../clock.lua, deliveries.lua
--
-- Returns {webhook, delivery}, or nil.

local given = cjson.decode(ARGV[1])
local prefix, now, passed_over = given.prefix, milliseconds(), {}
for _, tenant in ipairs(given.pass_over) do passed_over[tenant] = true end
for _, webhook in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'deliveries', '-inf', now)) do
  if not passed_over[redis.call('HGET', prefix .. 'webhook:' .. webhook, 'tenant') or ''] then
    local _, due = keys_of(prefix, webhook)
    local first = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, 1)[1]
    if first then redis.call('ZADD', due, now + given.lease_ms, first) end
    schedule(prefix, webhook)
    if first then return {webhook, first} end
  end
end
return false
