-- What a webhook is to be told, and was. Goes before `transition.lua` and the scripts of `store/webhooks.py`.
--
-- <prefix>deliveries                  webhooks, by when the next of their deliveries is due
-- <prefix>webhook:<id>:due            its deliveries that are still to be made, by when
-- <prefix>webhook:<id>:deliveries     all that are remembered of it, by when they began, in us: newest first means something
-- <prefix>delivery:<id>               the record
--
-- Retries take 83 hours at most, so that a record which ends after a week has long been told, or never will be.

local KEPT, KEPT_MS = 1000, 7 * 24 * 3600 * 1000

local function microseconds()
  local clock = redis.call('TIME')
  return clock[1] * 1000000 + clock[2]
end

local function milliseconds() return math.floor(microseconds() / 1000) end

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
  for _, each in ipairs(deliveries) do
    redis.call('DEL', prefix .. 'delivery:' .. each)
    redis.call('ZREM', all, each)
    redis.call('ZREM', due, each)
  end
end

local function begin_delivery(prefix, webhook, id, tenant, kind, job, at)
  local now, record, all, due = milliseconds(), prefix .. 'delivery:' .. id, keys_of(prefix, webhook)
  redis.call('HSET', record, 'id', id, 'webhook', webhook, 'tenant', tenant, 'type', kind, 'job', job, 'at', at,
    'status', 'pending', 'attempts', '[]')
  local began = microseconds()
  redis.call('ZADD', all, string.format('%.0f', began), id)
  redis.call('ZADD', due, now, id)
  for _, key in ipairs({record, all, due}) do redis.call('PEXPIRE', key, KEPT_MS) end
  forget(prefix, webhook, redis.call('ZRANGEBYSCORE', all, '-inf', string.format('%.0f', began - KEPT_MS * 1000)))
  forget(prefix, webhook, redis.call('ZRANGE', all, 0, -(KEPT + 1)))
  schedule(prefix, webhook)
end

