-- The one script that changes a job: it checks owner, status, fencing token, lease and quotas, writes the record, keeps
-- the indexes, appends the event and, at the end, begins the webhook's delivery (`deliveries.lua`), in one call. They can never disagree.
--
-- KEYS  1 job hash, 2 its event stream, 3.. records that must exist (the model and datasets of a new job)
-- ARGV  1 key prefix       2 job id         3 moves "queued>running,..." ("none>queued" makes it, "failed>none" deletes it)
--       4 token or ""      5 lease in ms or ""   6 "expired before" in ms or ""     7 now, ISO 8601
--       8 event or ""      9 the event's data, JSON   10 "1" gives the attempt back
--      11 the tenant who asks, or "": a job of another is none
--      12 how many jobs of the tenant may be in the state it moves to (queued, when new, or running), or ""
--      13.. field, value, ...
-- Returns {1, status, revision, token, attempts, was}, with its artifacts at the end for a job that is deleted, or
-- {0, status, token, claimed_by}.

local FIELDS = 13
local prefix, id, at = ARGV[1], ARGV[2], ARGV[7]
local job, events = KEYS[1], KEYS[2]
local FINAL = {succeeded = true, failed = true, canceled = true}
local LEASED = {running = true, canceling = true}

local record = redis.call('HMGET', job, 'status', 'token', 'claimed_by', 'lease_until', 'tenant', 'line')
local was = record[1] or 'none'

local function refuse(status) return {0, status or was, record[2] or '0', record[3] or ''} end

if ARGV[11] ~= '' and ARGV[11] ~= record[5] then return {0, 'none', '0', ''} end
local target
for from, to in string.gmatch(ARGV[3], '(%a+)>(%a+)') do
  if from == was then target = to end
end
if not target then return refuse() end
if ARGV[4] ~= '' and ARGV[4] ~= record[2] then return refuse() end
if ARGV[6] ~= '' and tonumber(record[4] or '0') > tonumber(ARGV[6]) then return refuse() end
for i = 3, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then return refuse('missing:' .. KEYS[i]) end
end

local tenant, line = record[5], record[6]
if was == 'none' then
  for i = FIELDS, #ARGV, 2 do
    if ARGV[i] == 'tenant' then tenant = ARGV[i + 1] elseif ARGV[i] == 'line' then line = ARGV[i + 1] end
  end
end
local mine = prefix .. 'tenant:' .. tenant .. ':'
local function index_by_status(status) return mine .. 'jobs:status:' .. status end
local function running() -- one that is asked to stop still has its worker
  return redis.call('ZCARD', index_by_status('running')) + redis.call('ZCARD', index_by_status('canceling'))
end

if ARGV[12] ~= '' then
  if was == 'none' and redis.call('ZCARD', index_by_status('queued')) >= tonumber(ARGV[12]) then return refuse('full') end
  if target == 'running' and running() >= tonumber(ARGV[12]) then return refuse() end
end

if target == 'none' then
  for _, index in ipairs(cjson.decode(redis.call('HGET', job, 'indexes'))) do redis.call('ZREM', index, id) end
  redis.call('ZREM', index_by_status(was), id)
  local artifacts = redis.call('HGET', job, 'artifacts') or '[]'
  redis.call('DEL', job, events)
  return {1, 'none', 0, '0', '0', was, artifacts}
end

local now = milliseconds()

for i = FIELDS, #ARGV, 2 do redis.call('HSET', job, ARGV[i], ARGV[i + 1]) end
if ARGV[5] ~= '' and LEASED[target] then
  local deadline = string.format('%.0f', now + tonumber(ARGV[5]))
  redis.call('HSET', job, 'lease_until', deadline)
  redis.call('ZADD', prefix .. 'leases', deadline, id)
end

-- Which jobs of the tenant wait in a line, and which tenants have any there: `turn.lua` chooses among them.
local waiting, tenants = mine .. 'line:' .. line, prefix .. 'line:' .. line
local function stand() redis.call('ZADD', waiting, 0, id); redis.call('SADD', tenants, tenant) end
local function leave()
  redis.call('ZREM', waiting, id)
  if redis.call('EXISTS', waiting) == 0 then redis.call('SREM', tenants, tenant) end
end
-- A worker has become free for this tenant: whoever had to wait for that is delivered again by the next sweep.
local function call_next()
  for _, other in ipairs({'small', 'large'}) do
    local first = redis.call('ZRANGE', mine .. 'line:' .. other, 0, 0)[1]
    if first then redis.call('ZADD', prefix .. 'waiting', 'XX', 0, first) end
  end
end

if was == 'none' then
  redis.call('HSET', job, 'id', id, 'created_at', at)
  for _, index in ipairs(cjson.decode(redis.call('HGET', job, 'indexes'))) do redis.call('ZADD', index, 0, id) end
end
if target ~= was then
  redis.call('HSET', job, 'status', target)
  redis.call('ZREM', index_by_status(was), id)
  redis.call('ZADD', index_by_status(target), 0, id)
  redis.call('ZREM', prefix .. 'waiting', id)
  if target == 'queued' then
    stand()
    redis.call('ZADD', prefix .. 'waiting', now, id)
    redis.call('HDEL', job, 'progress', 'started_at', 'lease_until')
    if ARGV[10] == '1' then redis.call('HINCRBY', job, 'attempts', -1) end
  else
    leave()
  end
  if target == 'running' then
    redis.call('HINCRBY', job, 'attempts', 1)
    redis.call('HINCRBY', job, 'token', 1)
    redis.call('HSET', job, 'started_at', at)
    redis.call('HSET', prefix .. 'turns', tenant, redis.call('INCR', prefix .. 'turn'))
  end
  if not LEASED[target] then redis.call('ZREM', prefix .. 'leases', id) end
  if LEASED[was] and not LEASED[target] then call_next() end
  if FINAL[target] then redis.call('HSET', job, 'finished_at', at) end
  if target == 'succeeded' then
    local stored = mine .. 'stored'
    for _, artifact in ipairs(cjson.decode(redis.call('HGET', job, 'artifacts'))) do
      redis.call('SADD', prefix .. 'blob:' .. tenant .. ':' .. artifact.sha256, id)
      if redis.call('HSETNX', stored, artifact.sha256, artifact.size) == 1 then
        redis.call('HINCRBY', stored, 'total', artifact.size)
      end
    end
  end
  if FINAL[target] then
    local webhook = redis.call('HGET', job, 'webhook')
    if webhook and webhook ~= '' and redis.call('EXISTS', prefix .. 'webhook:' .. webhook) == 1 then
      begin_delivery(prefix, webhook, 'dlv_' .. string.sub(id, 5), tenant, 'job.' .. target, id, at)
    end
  end
end

local function append(event, data)
  redis.call('XADD', events, 'MAXLEN', '~', 5000, '*', 'event', event, 'data', data, 'at', at)
end

local bump = (target ~= was or #ARGV >= FIELDS) and 1 or 0
local revision = redis.call('HINCRBY', job, 'revision', bump)
local after = redis.call('HMGET', job, 'token', 'attempts', 'error')
if target ~= was then
  local data = string.format('{"status":"%s","revision":%d,"attempts":%d', target, revision, after[2] or 0)
  if after[3] then data = data .. ',"error":' .. after[3] end
  append('state', data .. '}')
  if FINAL[target] then append('done', data .. '}') end
end
if ARGV[8] ~= '' then append(ARGV[8], ARGV[9]) end
return {1, target, revision, after[1] or '0', after[2] or '0', was}
