-- Blobs whose bytes are being deleted: a sorted set, by when the deletion must be done.

local function is_being_deleted(deletions, blob)
  return tonumber(redis.call('ZSCORE', deletions, blob) or '0') > milliseconds()
end
