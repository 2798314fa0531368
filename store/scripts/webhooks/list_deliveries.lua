-- The deliveries of a webhook, newest first.
--
-- arguments: prefix, webhook, most
-- constants: FIELDS
-- uses: ../clock.lua, deliveries.lua
--
-- Returns the fields of each, nils for one that ran out.

local given = cjson.decode(ARGV[1])
local all, found = keys_of(given.prefix, given.webhook), {}
for _, delivery in ipairs(redis.call('ZREVRANGE', all, 0, given.most - 1)) do
  found[#found + 1] = redis.call('HMGET', given.prefix .. 'delivery:' .. delivery, unpack(FIELDS))
end
return found
