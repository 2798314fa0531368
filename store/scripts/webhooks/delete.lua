-- Forgets a webhook of the tenant, and what it was still to be told.
--
-- keys: webhook, the tenant's webhooks
-- arguments: prefix, id, tenant
-- uses: ../clock.lua, deliveries.lua
--
-- Returns 1 if there was one.

local given = cjson.decode(ARGV[1])
local record, webhooks = unpack(KEYS)
if redis.call('HGET', record, 'tenant') ~= given.tenant then return 0 end
local all, due = keys_of(given.prefix, given.id)
forget(given.prefix, given.id, redis.call('ZRANGE', all, 0, -1))
redis.call('DEL', record, all, due)
schedule(given.prefix, given.id)
redis.call('ZREM', webhooks, given.id)
return 1
