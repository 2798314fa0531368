-- Forgets a delivery: its webhook was deleted, or it is too old.
--
-- arguments: prefix, webhook, delivery
-- uses: ../clock.lua, deliveries.lua

local given = cjson.decode(ARGV[1])
forget(given.prefix, given.webhook, {given.delivery})
schedule(given.prefix, given.webhook)
