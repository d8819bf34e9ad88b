-- Adds counts to the rows of an hour and of its day, once, however often the same chunk comes.
-- KEYS[1]  the hour's hash: column and row -> hits
-- KEYS[2]  the day's
-- KEYS[3]  the number of the writer's last chunk
-- ARGV[1]  the number of this one
-- ARGV[2]  seconds for which KEYS[1] is kept from now on
-- ARGV[3]  the same for KEYS[2]
-- ARGV[4]  the same for KEYS[3]
-- ARGV[5]… pairs: field, hits to add
-- returns  1, or 0 where it came before
if tonumber(redis.call('GET', KEYS[3]) or '0') >= tonumber(ARGV[1]) then return 0 end
-- First, so that a chunk which cannot be added whole, as somebody has spoilt a field, is neither added twice nor in the way
-- for ever. A Redis that takes no writes refuses this one, and the chunk comes again.
redis.call('SET', KEYS[3], ARGV[1], 'EX', ARGV[4])
for i = 5, #ARGV, 2 do
  redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('HINCRBY', KEYS[2], ARGV[i], ARGV[i + 1])
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
