-- A new webhook.
--
-- keys: webhook, the tenant's webhooks
-- arguments: id, most, fields
--
-- Returns 0 if the tenant has as many as it may, else 1.

local given = cjson.decode(ARGV[1])
local record, webhooks = unpack(KEYS)
if redis.call('ZCARD', webhooks) >= given.most then return 0 end
for name, value in pairs(given.fields) do redis.call('HSET', record, name, value) end
redis.call('ZADD', webhooks, 0, given.id)
return 1
