-- Adds changes to a table, all or none, if nobody else has since the caller looked; and tells the audit log.
-- KEYS[1]  hash: id -> record, as JSON
-- KEYS[2]  hash: format, version (counts the changes), stamp (tells two histories of one version apart), floor
-- KEYS[3]  sorted set: id -> version of its last change; only those after `floor`
-- KEYS[4]  stream of audit entries
-- ARGV[1]  the version that the caller has seen
-- ARGV[2]  the new stamp
-- ARGV[3]  how many changes KEYS[3] keeps
-- ARGV[4]  the audit entry, as JSON
-- ARGV[5]  how many entries KEYS[4] keeps
-- ARGV[6]… pairs: id, record; an empty record removes the id
-- returns  1, or 0 where the version is another
local version = tonumber(redis.call('HGET', KEYS[2], 'version') or '0')
if version ~= tonumber(ARGV[1]) then return 0 end
version = version + 1
for i = 6, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
  redis.call('ZADD', KEYS[3], version, ARGV[i])
end
redis.call('HSET', KEYS[2], 'format', 1, 'version', version, 'stamp', ARGV[2])
redis.call('XADD', KEYS[4], 'MAXLEN', ARGV[5], '*', 'entry', ARGV[4])
local surplus = redis.call('ZCARD', KEYS[3]) - tonumber(ARGV[3])
if surplus > 0 then
  local last = redis.call('ZRANGE', KEYS[3], surplus - 1, surplus - 1, 'WITHSCORES')
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', last[2])
  redis.call('HSET', KEYS[2], 'floor', last[2])
end
return 1
