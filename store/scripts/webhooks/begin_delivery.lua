-- Begins the delivery of a test.
--
-- arguments: prefix, webhook, delivery
-- uses: ../clock.lua, deliveries.lua

local given = cjson.decode(ARGV[1])
begin_delivery(given.prefix, given.webhook, given.delivery)
