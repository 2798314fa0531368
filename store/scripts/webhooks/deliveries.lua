-- What a webhook is to be told, and was told. Goes before the scripts that change it; needs `clock.lua`.
--
-- <prefix>deliveries                 webhooks, by when their next delivery is due
-- <prefix>webhook:<id>:due           deliveries that are still to be made, by when
-- <prefix>webhook:<id>:deliveries    all that are remembered, by when they began, in us: so that "newest first" holds
-- <prefix>delivery:<id>              the record
--
-- Retries take 83 hours at most, so a record that ends after a week has long been told, or never will be.

local KEPT, KEPT_MS = 1000, 7 * 24 * 3600 * 1000

local function keys_of(prefix, webhook)
  local key = prefix .. 'webhook:' .. webhook
  return key .. ':deliveries', key .. ':due'
end

-- To be called after every change of what is due
local function schedule(prefix, webhook)
  local _, due = keys_of(prefix, webhook)
  local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
  if first[1] then redis.call('ZADD', prefix .. 'deliveries', first[2], webhook)
  else redis.call('ZREM', prefix .. 'deliveries', webhook) end
end

local function forget(prefix, webhook, deliveries)
  local all, due = keys_of(prefix, webhook)
  for _, delivery in ipairs(deliveries) do
    redis.call('DEL', prefix .. 'delivery:' .. delivery)
    redis.call('ZREM', all, delivery)
    redis.call('ZREM', due, delivery)
  end
end

-- `delivery`: id, tenant, type, job (empty for a test), at
local function begin_delivery(prefix, webhook, delivery)
  local began, record = microseconds(), prefix .. 'delivery:' .. delivery.id
  local all, due = keys_of(prefix, webhook)
  redis.call('HSET', record, 'id', delivery.id, 'webhook', webhook, 'tenant', delivery.tenant, 'type', delivery.type,
    'job', delivery.job, 'at', delivery.at, 'status', 'pending', 'attempts', '[]')
  redis.call('ZADD', all, digits(began), delivery.id)
  redis.call('ZADD', due, milliseconds(), delivery.id)
  for _, key in ipairs({record, all, due}) do redis.call('PEXPIRE', key, KEPT_MS) end
  forget(prefix, webhook, redis.call('ZRANGEBYSCORE', all, '-inf', digits(began - KEPT_MS * 1000)))
  forget(prefix, webhook, redis.call('ZRANGE', all, 0, -(KEPT + 1)))
  schedule(prefix, webhook)
end
