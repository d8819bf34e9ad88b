-- Decides a batch of takes in order, each whole. KEYS are the distinct bucket keys of the batch. Where a cluster has them in several
-- slots there are no KEYS: "slots", the number of keys, then the keys stand before what else is in ARGV. If one of them is not on this
-- node, nothing is done, and the reply is nil.
-- ARGV[1]  time in microseconds since the epoch, or "" for Redis TIME (tests pass a time; production passes "")
-- ARGV[2]  one flat MessagePack array of integers: see batch.rs, which writes it and reads the reply
-- ARGV[3]  and ARGV[4], if the limits of time zones are in the batch: from when, and before when, their bounds hold; at another
--          time nothing is done, and the reply is now alone
-- ARGV[3]  or ARGV[5], behind those, only where buckets may be leased from: another such array, see lease/wire.rs
-- returns  one flat MessagePack array of integers: now, then per take: admitted, then per item: fits (+2 if its bucket is as
--          last told in this reply), if it is independent what its bucket held then, and unless told already its bucket
--          after the decision; for a usual take admitted + 2, then its bucket; then what is asked of leases
-- twin     src/bucket.rs and src/bucket/*.rs for the arithmetic, src/store/judge.rs for the decision
--
-- A bucket is stored as MessagePack integers in a row, without an array around them where it has a fixed size:
--   tokens    tokens, fraction, denominator, at_us, ends_s    calendar, fixed   used, start_us
--   sliding   [slot, hits, slot, hits, …], oldest first    penalty   strikes, since_us, last_us, until_us
-- Behind the first two stand the leases taken from the bucket, if any: ends_us, tokens, ends_us, tokens, …, oldest first; before
-- them, in a quota that a gift has filled up, when that was.
-- A token bucket says when its key expires, since a write that leaves the expiry as it is costs Redis a sixth less.
-- All numbers are integers below 2^53, which Lua's doubles hold exactly; (a - a % b) / b divides them without rounding. What
-- is stored under a key but is not a bucket counts as a full one, and is replaced when something is taken. A refusal writes
-- nothing. State is kept in plain tables, one per field, by the key's number: a table per bucket would cost garbage.

local PACED, TOKENS, SLIDING = 0, 1, 2              -- kinds; 3 is a calendar quota or a fixed window; up to 1, tokens
local PENALTY = 4
local OVERDRAW, STOP, INDEPENDENT, STRIKE = 8, 16, 24, 32 -- ways to charge; less is all or nothing
local SLOTS = 60                                    -- limit.rs, SLIDING_SLOTS
local FIELDS = 7                                    -- numbers per limit
local MARGIN_S, LONGEST_S = 61, 8000000000          -- a bucket outlives its refill by a minute; no expiry beyond 250 years
local EXACT = 9007199254740992                      -- 2^53
local DAY_US = 86400000000

local call, pcall, unpack_numbers, pack_numbers = redis.call, pcall, cmsgpack.unpack, cmsgpack.pack
local keys, args, values = KEYS, ARGV, {}
if ARGV[1] == "slots" then
  keys, args = {}, { unpack(ARGV, ARGV[2] + 3) }
  for i = 1, ARGV[2] do
    -- A command of a script may not span slots, and finds out whether a slot is here.
    local found = redis.pcall("MGET", ARGV[i + 2])
    if found.err then return false end
    keys[i], values[i] = ARGV[i + 2], found[1]
  end
end

local data = unpack_numbers(args[2])
local now
if args[1] == "" then
  local time = call("TIME")
  now = time[1] * 1000000 + time[2]
else
  now = tonumber(args[1])
end
if args[4] and (now < tonumber(args[3]) or now >= tonumber(args[4])) then return pack_numbers({ now }) end

for first = 1, #KEYS, 1000 do
  local last = math.min(first + 999, #KEYS)
  local chunk = call("MGET", unpack(KEYS, first, last))
  if first == 1 and last == #KEYS then
    values = chunk
  else
    for i = first, last do values[i] = chunk[i - first + 1] end
  end
end

local function read_tokens(value)
  local tokens, part, parts, time, ends = unpack_numbers(value)
  -- Comparing what is no number raises an error, which the caller takes for "not a bucket".
  local exact = tokens % 1 + part % 1 + parts % 1 + time % 1 + ends % 1 == 0
  if exact and tokens > -EXACT and tokens < EXACT and part >= 0 and part < parts and parts < EXACT and time >= 0 and time < EXACT then
    return tokens, part, parts, time, ends
  end
  error("not a bucket")
end

local function stored_tokens(key, limit)
  local value = values[key]
  if value then
    local ok, tokens, part, parts, time, ends = pcall(read_tokens, value)
    if ok then return tokens, part, parts, time, ends end
  end
  return data[limit + 1], 0, data[limit + 5], now, 0
end

-- By limit, its capacity without what is lent of it, where that lowers it.
local unlent = {}

-- If buckets may be leased from: by key of a quota, how much of it is lent, when that period began, and when a gift last filled
-- it up.
local lent_of, lent_since, filled_at

-- How far a token bucket goes below zero.
local function deepest_debt(limit)
  return data[limit] == PACED and data[limit + 7] or unlent[limit] or data[limit + 1]
end

local function refilled_tokens(limit, tokens, part, stored_parts, time)
  local capacity, tick, parts = data[limit + 1], data[limit + 2], data[limit + 5]
  if stored_parts ~= parts then part = 0 end
  if tokens < -capacity then tokens = math.max(tokens, -deepest_debt(limit)) end
  if now > time then
    local ticks = now - time
    if tick > 1 then ticks = (now - now % tick) / tick - (time - time % tick) / tick end
    if ticks >= data[limit + 6] then
      tokens = capacity
    elseif parts == 1 then
      tokens = tokens + ticks * data[limit + 3]
    else
      local rate_part = data[limit + 4]
      local rest = ticks % parts
      local sum = part + rest * rate_part
      part = sum % parts
      tokens = tokens + ticks * data[limit + 3] + (ticks - rest) / parts * rate_part + (sum - part) / parts
    end
    time = now
  end
  if tokens >= capacity then return capacity, 0, time end
  return tokens, part, time
end

-- Redis writes a number out slowly, and most buckets of a batch live equally long.
local lives = {}

local function life_until(full_at)
  local life = (full_at - now) / 1000000 + MARGIN_S
  return life < LONGEST_S and life - life % 1 or LONGEST_S
end

local function store(key, value, life)
  local text = lives[life]
  if not text then
    text = string.format("%.0f", life)
    lives[life] = text
  end
  call("SET", keys[key], value, "EX", text)
end

local function write_tokens(key, limit, tokens, part, time, expires)
  local parts, missing, full_at = data[limit + 5], data[limit + 1] - tokens, time
  if missing > 0 then
    local rate = data[limit + 3] * parts + data[limit + 4]
    -- Without a rate the time is endless, which the longest life stands for.
    full_at = time + (missing * parts / rate + 1) * data[limit + 2]
  end
  if expires * 1000000 > full_at then
    return call("SET", keys[key], pack_numbers(tokens, part, parts, time, expires), "KEEPTTL")
  end
  local life = life_until(full_at)
  store(key, pack_numbers(tokens, part, parts, time, (now - now % 1000000) / 1000000 + life), life)
end

local reply, told = { now }, 1

local function take_usual(key, limit, hits)
  local tokens, part, parts, time, expires = stored_tokens(key, limit)
  tokens, part, time = refilled_tokens(limit, tokens, part, parts, time)
  local admitted = 2
  if tokens >= hits then
    tokens, admitted = tokens - hits, 3
    write_tokens(key, limit, tokens, part, time, expires)
  end
  reply[told + 1], reply[told + 2], reply[told + 3], reply[told + 4] = admitted, tokens, part, time - now
  told = told + 4
end

-- What quotas of a period need. Gives three functions: one that reads a bucket, one that writes it, and one that decides a usual
-- take from a period of fixed length that is counted from the epoch.
local function open_periods()
  local function read_spent(value)
    local used, start = unpack_numbers(value)
    if used % 1 + start % 1 == 0 and used >= 0 and used < EXACT and start >= 0 and start < EXACT then
      return used, start
    end
    error("not a bucket")
  end

  local function write_spent(key, limit, used, start)
    store(key, pack_numbers(used, start), life_until(start + data[limit + 3]))
  end

  local function take_period(key, limit, hits, always)
    local present, value = now - now % data[limit + 3], values[key]
    local ok, used, start = false
    if value then ok, used, start = pcall(read_spent, value) end
    local goes_on = ok and start >= present
    if not goes_on then used, start = 0, present end
    local admitted = 2
    if data[limit + 1] - used >= hits then admitted = 3 end
    if always or admitted == 3 then
      local most = data[limit + 5]
      used = used + hits
      if used > most then used = most end
      -- The first write of the period has said when the key expires.
      if goes_on then call("SET", keys[key], pack_numbers(used, start), "KEEPTTL") else write_spent(key, limit, used, start) end
    end
    reply[told + 1], reply[told + 2], reply[told + 3] = admitted, used, start
    told = told + 3
  end

  return read_spent, write_spent, take_period
end

-- What takes that are not usual ones need: books over their buckets. Gives two functions, one that decides such a take and one
-- that writes what they all changed. Most batches do not need them, and to set them up costs as much as a lone take.
local function open_books()
  -- By key: how much (tokens, or hits used), fraction, denominator, at_us or start_us, ends_s, slots; the limit that last refilled it
  -- (below zero to have it done again), the last take that named it, whether it must be written, and the limit under which it
  -- was last told.
  local amount, fraction, denominator, at, ends, slots = {}, {}, {}, {}, {}, {}
  local refilled_by, met_in, dirty, told_by = {}, {}, {}, {}
  local read_spent, write_spent = open_periods()

  local function read_slots(value)
    local list = unpack_numbers(value)
    local used, newest = 0, -1
    for i = 1, #list, 2 do
      local slot, hits = list[i], list[i + 1]
      if slot % 1 + hits % 1 ~= 0 or slot <= newest or slot >= EXACT or hits <= 0 or hits >= EXACT then
        error("not a bucket")
      end
      used, newest = used + hits, slot
    end
    if used >= EXACT then error("not a bucket") end
    return list, used
  end

  local function months_since_epoch(day)
    day = day + 719468
    local of_era = day % 146097
    local era = (day - of_era) / 146097
    local year = (of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096))
    year = (year - year % 365) / 365
    local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
    local from_march = math.floor((5 * of_year + 2) / 153)
    return (era * 400 + year) * 12 + from_march + 2 - 1970 * 12
  end

  local function first_of_month(months)
    local since_march = months + 1970 * 12 - 2
    local from_march = since_march % 12
    local year = (since_march - from_march) / 12
    local era = math.floor(year / 400)
    return era * 146097 + 365 * (year % 400) + math.floor(year % 400 / 4) - math.floor(year % 400 / 100)
      + math.floor((153 * from_march + 2) / 5) - 719468
  end

  local starts = {}
  local function start_of_period(limit)
    local start = starts[limit]
    if start then return start end
    local months, length, anchor, bounds = data[limit + 2], data[limit + 3], data[limit + 4], data[limit + 6]
    if bounds > 0 then
      -- Now lies before the last of them.
      while data[bounds + 1] <= now do bounds = bounds + 1 end
      start = data[bounds]
    elseif months > 0 then
      local month = months_since_epoch((now - now % DAY_US) / DAY_US)
      start = first_of_month(month - month % months) * DAY_US
    elseif now < anchor then
      start = 0
    else
      start = now - (now - anchor) % length
    end
    starts[limit] = start
    return start
  end

  local function refill_tokens(key, limit, fresh)
    local tokens, part, parts, time = amount[key], fraction[key], denominator[key], at[key]
    if fresh then tokens, part, parts, time, ends[key] = stored_tokens(key, limit) end
    amount[key], fraction[key], at[key] = refilled_tokens(limit, tokens, part, parts, time)
    denominator[key] = data[limit + 5]
  end

  local function refill_slots(key, limit, fresh)
    local list, used = slots[key], amount[key]
    if fresh then
      local ok, value = false, values[key]
      if value then ok, list, used = pcall(read_slots, value) end
      if not ok then list, used = {}, 0 end
    end
    local slot_us = data[limit + 2]
    local oldest = (now - now % slot_us) / slot_us - SLOTS
    local first = 1
    while list[first] and list[first] < oldest do
      used = used - list[first + 1]
      first = first + 2
    end
    if first > 1 then
      local kept = {}
      for i = first, #list do kept[i - first + 1] = list[i] end
      list = kept
    end
    slots[key], amount[key] = list, used
  end

  local function refill_spent(key, limit, fresh)
    local used, start = amount[key], at[key]
    local present = start_of_period(limit)
    if fresh then
      local ok, value = false, values[key]
      if value then ok, used, start = pcall(read_spent, value) end
      if not ok then used, start = 0, present end
    end
    if present > start then used, start = 0, present end
    amount[key], at[key] = used, start
  end

  -- What the take at hand has changed so far, to take it back if it is refused.
  local undo, undo_key, undo_amount, undo_fraction, undo_slots = 0, {}, {}, {}, {}

  -- Adds to the present slot, or to the newest one if the clock went back, and says how many hits it added.
  local function add_to_slots(key, limit, hits)
    local list, slot_us = slots[key], data[limit + 2]
    local room = 2 * data[limit + 1] - amount[key]
    if hits > room then hits = room end
    if hits <= 0 then return 0 end
    local slot, length = (now - now % slot_us) / slot_us, #list
    if length > 0 and list[length - 1] >= slot then
      list[length] = list[length] + hits
    else
      list[length + 1], list[length + 2] = slot, hits
    end
    amount[key] = amount[key] + hits
    return hits
  end

  local function remove_from_slots(list, hits)
    local length = #list
    while length > 0 and hits > 0 do
      if list[length] > hits then
        list[length] = list[length] - hits
        return
      end
      hits = hits - list[length]
      list[length - 1], list[length] = nil, nil
      length = length - 2
    end
  end

  local function apply_slots(key, limit, hits, gives)
    local used, list = amount[key], slots[key]
    if gives then
      if used == 0 or hits == 0 then return end
      local copy = {}
      for i = 1, #list do copy[i] = list[i] end
      remove_from_slots(copy, hits)
      slots[key], amount[key] = copy, used > hits and used - hits or 0
    else
      list = add_to_slots(key, limit, hits)
      if list == 0 then return end
    end
    undo = undo + 1
    undo_key[undo], undo_amount[undo], undo_fraction[undo], undo_slots[undo] = key, used, false, list
  end

  -- What penalties need: the twin of src/bucket/penalty.rs. Their buckets are { strikes, since_us, last_us, until_us } in slots, never
  -- changed but replaced, and their amount is 1 while a penalty runs.
  local refill_penalty, strike, write_penalty
  local function open_penalties()
    local function read_penalty(value)
      local strikes, since, last, ends = unpack_numbers(value)
      for _, number in ipairs({ strikes, since, last, ends }) do
        if number % 1 ~= 0 or number < 0 or number >= EXACT then error("not a bucket") end
      end
      if ends == nil or strikes >= 4294967296 then error("not a bucket") end
      return strikes, since, last, ends
    end

    local function put(key, strikes, since, last, ends)
      slots[key] = { strikes, since, last, ends }
      amount[key] = last > 0 and ends > now and 1 or 0
    end

    function refill_penalty(key, limit, fresh)
      local strikes, since, last, ends = 0, 0, 0, 0
      if fresh then
        local value = values[key]
        if value then
          local ok, a, b, c, d = pcall(read_penalty, value)
          if ok then strikes, since, last, ends = a, b, c, d end
        end
      else
        strikes, since, last, ends = unpack(slots[key])
      end
      ends = math.min(ends, now + data[limit + 5])
      if last > 0 and now >= ends + data[limit + 5] then last, ends = 0, 0 end
      if strikes > 0 and now >= since + data[limit + 3] then strikes, since = 0, 0 end
      put(key, strikes, since, last, ends)
    end

    function strike(key, limit, hits, gives)
      if hits == 0 or amount[key] == 1 and not gives then return end
      undo = undo + 1
      undo_key[undo], undo_amount[undo], undo_fraction[undo], undo_slots[undo] = key, amount[key], false, slots[key]
      if gives then return put(key, 0, 0, 0, 0) end
      local strikes, since, last, ends = unpack(slots[key])
      if strikes == 0 then since = now end
      strikes = strikes + hits
      if strikes < data[limit + 2] then return put(key, strikes, since, last, ends) end
      last = last == 0 and data[limit + 4] or math.min(2 * last, data[limit + 5])
      put(key, 0, 0, last, now + last)
    end

    function write_penalty(key, limit)
      local strikes, since, last, ends = unpack(slots[key])
      local forgotten = strikes > 0 and since + data[limit + 3] or now
      if last > 0 then forgotten = math.max(forgotten, ends + data[limit + 5]) end
      store(key, pack_numbers(strikes, since, last, ends), life_until(forgotten))
    end
  end

  -- Applies hits to a refilled bucket. Debt ends at one capacity, giving at full.
  local function apply(key, limit, hits, gives)
    local kind, capacity, before = data[limit], data[limit + 1], amount[key]
    local after
    if kind <= TOKENS then
      if gives then
        after = before + hits
        if after > capacity then after = capacity end
      else
        after = before - hits
        if after < -capacity then after = math.max(after, math.min(before, -deepest_debt(limit))) end
      end
    elseif kind == SLIDING then
      return apply_slots(key, limit, hits, gives)
    elseif kind == PENALTY then
      return strike(key, limit, hits, gives)
    elseif gives then
      after = before > hits and before - hits or 0
      -- What is lent stays charged: whoever has it may still spend it.
      local lent = lent_of and lent_of[key]
      if lent and before - hits < lent and lent_since[key] == at[key] then
        after, filled_at[key] = math.min(before, lent), now
      end
    else
      after = before + hits
      if after > data[limit + 5] then after = data[limit + 5] end
      if after < before then after = before end
    end
    if after == before then return end
    undo = undo + 1
    undo_key[undo], undo_amount[undo], undo_fraction[undo] = key, before, fraction[key]
    amount[key] = after
    if kind <= TOKENS and after >= capacity then fraction[key] = 0 end
  end

  local function take_back()
    for i = undo, 1, -1 do
      local key, changed = undo_key[i], undo_slots[i]
      if undo_fraction[i] == false then
        -- The list from before a gift, or the hits added since.
        if type(changed) == "table" then
          slots[key] = changed
        else
          remove_from_slots(slots[key], changed)
        end
      else
        fraction[key] = undo_fraction[i]
      end
      amount[key] = undo_amount[i]
    end
    undo = 0
  end

  -- Buckets from before a take looked at them under another limit: takes under two limits meet while replicas reload. What
  -- only looked must leave no trace: the bucket is put back if it is to be written, else read anew.
  local looks, look_key, look_state = 0, {}, {}

  local function remember(key)
    looks = looks + 1
    look_key[looks] = key
    local refilled = dirty[key] and refilled_by[key] or nil
    look_state[looks] = { amount[key], fraction[key], denominator[key], at[key], slots[key], refilled }
  end

  local function leave_no_trace()
    local changed = {}
    for i = 1, undo do changed[undo_key[i]] = true end
    for i = looks, 1, -1 do
      local key = look_key[i]
      if changed[key] then
        -- It may hold more than the last of the limits allows: the next take refills it again.
        refilled_by[key] = -math.abs(refilled_by[key])
      else
        local state = look_state[i]
        amount[key], fraction[key], denominator[key] = state[1], state[2], state[3]
        at[key], slots[key], refilled_by[key] = state[4], state[5], state[6]
        told_by[key] = nil
      end
    end
    looks = 0
  end

  local function write(key)
    local limit = math.abs(refilled_by[key])
    local kind = data[limit]
    if kind <= TOKENS then
      write_tokens(key, limit, amount[key], fraction[key], at[key], ends[key])
    elseif kind == SLIDING then
      local list = slots[key]
      store(key, pack_numbers(list), life_until(#list > 0 and (list[#list - 1] + SLOTS + 1) * data[limit + 2] or now))
    elseif kind == PENALTY then
      write_penalty(key, limit)
    else
      write_spent(key, limit, amount[key], at[key])
    end
  end

  local function balance(key, limit)
    if data[limit] <= TOKENS then return amount[key] end
    return data[limit + 1] - amount[key]
  end

  -- By item: whether it fits, and what its bucket held then.
  local fits, left = {}, {}

  -- Whether an item that does not fit now does when its answer waits, if the take begins at `first`: the twin of
  -- store/pace.rs.
  local function fits_later(first, item, key, limit, hits)
    local asked = hits
    for other = first, item - 4, 4 do
      if data[other] == key and fits[other] == 1 and data[other + 3] % 8 < 4 then asked = asked + data[other + 2] end
    end
    if asked > data[limit + 1] then return false end
    local tick, rate_part, parts, time = data[limit + 2], data[limit + 4], data[limit + 5], at[key]
    local ends = now + data[limit + 8]
    if ends < time then return false end
    local ticks = (ends - ends % tick) / tick - (time - time % tick) / tick
    local rest = ticks % parts
    local sum = fraction[key] + rest * rate_part
    local earned = ticks * data[limit + 3] + (ticks - rest) / parts * rate_part + (sum - sum % parts) / parts
    return amount[key] + earned >= hits
  end

  -- Charges a take whose items have not all the same fate.
  local function charge_apart(first, last, wet, admitted, over)
    for item = first, last, 4 do
      local key, limit, hits, op = data[item], data[item + 1], data[item + 2], data[item + 3]
      local gives, fit = op % 8 >= 4, fits[item] == 1
      local charged = fit and admitted
      if op >= STRIKE then charged = fit and item > first and fits[item - 4] == 0
      elseif op >= INDEPENDENT then charged = true
      elseif op >= STOP then charged = gives or not fit or not over
      elseif op >= OVERDRAW then charged = not fit or admitted end
      if charged and wet then apply(key, limit, hits, gives) end
      left[item] = balance(key, limit)
    end
  end

  local function take_together(number, first, last, dry)
    for item = first, last, 4 do
      local key, limit = data[item], data[item + 1]
      if refilled_by[key] ~= limit then
        local fresh = not dirty[key] and met_in[key] ~= number
        if refilled_by[key] then remember(key) end
        refilled_by[key], told_by[key] = limit, nil
        local kind = data[limit]
        if kind <= TOKENS then refill_tokens(key, limit, fresh)
        elseif kind == SLIDING then refill_slots(key, limit, fresh)
        elseif kind == PENALTY then
          if not strike then open_penalties() end
          refill_penalty(key, limit, fresh)
        else refill_spent(key, limit, fresh) end
      end
      met_in[key] = number
    end
    undo = 0
    local blocked, quotas, quota_fits, over, charges = false, false, false, false, 0
    for item = first, last, 4 do
      local key, limit, hits, op = data[item], data[item + 1], data[item + 2], data[item + 3]
      local gives, role = op % 8 >= 4, op % 4
      local fit = gives or role == 3 or balance(key, limit) >= hits
        or data[limit] == PACED and fits_later(first, item, key, limit, hits)
      if op > charges then charges = op end
      if fit then
        fits[item] = 1
        if role == 2 then quotas, quota_fits = true, true end
      else
        fits[item], over = 0, true
        if role == 0 then blocked = true
        elseif role == 2 then quotas = true end
      end
      if op < STRIKE and (fit or op >= INDEPENDENT) then apply(key, limit, hits, gives) end
      left[item] = balance(key, limit)
    end
    local admitted = not blocked and (quota_fits or not quotas)
    if dry == 1 or not admitted or over and charges >= OVERDRAW then
      take_back()
      if charges >= OVERDRAW then charge_apart(first, last, dry == 0, admitted, over) end
    end
    for i = 1, undo do
      local key = undo_key[i]
      dirty[key], told_by[key] = true, nil
    end
    told = told + 1
    reply[told] = admitted and 1 or 0
    for item = first, last, 4 do
      local key, limit = data[item], data[item + 1]
      local told_already = told_by[key] == limit
      told = told + 1
      reply[told] = told_already and fits[item] + 2 or fits[item]
      if data[item + 3] >= INDEPENDENT then
        told = told + 1
        reply[told] = left[item]
      end
      if not told_already then
        told_by[key] = limit
        local kind = data[limit]
        if kind <= TOKENS then
          reply[told + 1], reply[told + 2], reply[told + 3] = amount[key], fraction[key], at[key] - now
          told = told + 3
        elseif kind == SLIDING then
          local list = slots[key]
          told = told + 1
          reply[told] = #list / 2
          for i = 1, #list do reply[told + i] = list[i] end
          told = told + #list
        elseif kind == PENALTY then
          local list = slots[key]
          for i = 1, 4 do reply[told + i] = list[i] end
          told = told + 4
        else
          reply[told + 1], reply[told + 2] = amount[key], at[key]
          told = told + 2
        end
      end
    end
    if looks > 0 then leave_no_trace() end
  end

  local function write_all()
    for key = 1, #keys do
      if dirty[key] then write(key) end
    end
  end

  return take_together, write_all
end

-- Leases: before the takes their buckets are brought up to now, with what replicas tell of them; after the takes what is asked
-- for is taken, and buckets that takes have written get their leases back. Proof and words: lease.rs.
local close_leases
if args[3] and #args % 2 == 1 then
  local asked = unpack_numbers(args[#args])
  local read_spent = open_periods()
  lent_of, lent_since, filled_at = {}, {}, {}
  -- By key: what Redis held, when each lease ends, its tokens, their sum.
  local found, ends, lent, sum = {}, {}, {}, {}

  local function read_leases(value, own)
    if own == 5 then read_tokens(value) else read_spent(value) end
    local all, dates, tokens, filled = { unpack_numbers(value) }, {}, {}, 0
    if (#all - own) % 2 == 1 then filled = table.remove(all, own + 1) end
    if filled % 1 ~= 0 then error("not a lease") end
    for i = own + 1, #all, 2 do
      local date, count = all[i], all[i + 1]
      if date % 1 + count % 1 ~= 0 or date < 0 or date >= EXACT or count <= 0 or count >= EXACT then error("not a lease") end
      dates[#dates + 1], tokens[#tokens + 1] = date, count
    end
    return dates, tokens, filled
  end

  local function drop_first(key)
    sum[key] = sum[key] - lent[key][1]
    table.remove(ends[key], 1)
    table.remove(lent[key], 1)
  end

  -- Brings a token bucket up to now. A lease kept its place free until it ended, whenever that was noticed.
  local function bring_up(key, limit)
    local capacity, present = data[limit + 1], now
    local tokens, part, parts, time, expires = stored_tokens(key, limit)
    while ends[key][1] and ends[key][1] <= present do
      if ends[key][1] > time then
        now, data[limit + 1] = ends[key][1], math.max(capacity - sum[key], 0)
        tokens, part, time = refilled_tokens(limit, tokens, part, parts, time)
        parts = data[limit + 5]
      end
      drop_first(key)
    end
    now, data[limit + 1] = present, math.max(capacity - sum[key], 0)
    tokens, part, time = refilled_tokens(limit, tokens, part, parts, time)
    data[limit + 1] = capacity
    return tokens, part, data[limit + 5], time, expires
  end

  -- Takes from a lease what was spent of it or comes back, and says how much that was.
  local function settle(key, date, count)
    for i = 1, #ends[key] do
      if ends[key][i] == date then
        if count > lent[key][i] then count = lent[key][i] end
        lent[key][i], sum[key] = lent[key][i] - count, sum[key] - count
        return count
      end
    end
    return 0
  end

  local function add(key, date, count)
    local dates, place = ends[key], #ends[key]
    while place > 0 and dates[place] > date do place = place - 1 end
    if dates[place] == date then
      lent[key][place] = lent[key][place] + count
    else
      table.insert(dates, place + 1, date)
      table.insert(lent[key], place + 1, count)
    end
    sum[key] = sum[key] + count
  end

  -- What Redis holds; a value of another kind of Redis' counts as none.
  local function stored(key)
    return call("MGET", keys[key])[1]
  end

  local function write_leases(key)
    local all = { filled_at[key] > 0 and filled_at[key] or nil }
    for i = 1, #ends[key] do
      if lent[key][i] > 0 then all[#all + 1], all[#all + 2] = ends[key][i], lent[key][i] end
    end
    if #all > 0 then call("SET", keys[key], stored(key) .. pack_numbers(unpack(all)), "KEEPTTL") end
  end

  local rows, capacities, at = {}, {}, 1
  while asked[at] do
    local key, limit, settled = asked[at], asked[at + 1], asked[at + 4]
    local is_tokens = data[limit] == TOKENS
    if not ends[key] then
      local value, ok = values[key], false
      found[key], ends[key], lent[key], sum[key], filled_at[key] = value, {}, {}, 0, 0
      if value then
        local dates, tokens, filled
        ok, dates, tokens, filled = pcall(read_leases, value, is_tokens and 5 or 2)
        if ok then
          ends[key], lent[key], filled_at[key] = dates, tokens, filled
          for i = 1, #tokens do sum[key] = sum[key] + tokens[i] end
        end
      end
    end
    rows[#rows + 1], capacities[#rows + 1] = at, data[limit + 1]
    unlent[limit] = data[limit + 1]
    if is_tokens then
      local tokens, part, parts, time, expires = bring_up(key, limit)
      for i = at + 5, at + 4 + 4 * settled, 4 do
        settle(key, asked[i], asked[i + 2])
        tokens = tokens + settle(key, asked[i], asked[i + 3])
      end
      values[key] = pack_numbers(tokens, part, parts, time, expires)
      data[limit + 1] = math.max(data[limit + 1] - sum[key], 0)
    else
      while ends[key][1] and ends[key][1] <= now do drop_first(key) end
      local ok, used, start = false
      if values[key] then ok, used, start = pcall(read_spent, values[key]) end
      for i = at + 5, at + 4 + 4 * settled, 4 do
        settle(key, asked[i], asked[i + 2] + asked[i + 3])
        -- Another period owes nothing to this one, nor does what was forgotten when a gift filled it up: that gift was its return.
        if ok and start == asked[i + 1] and asked[i] > filled_at[key] then
          used = math.max(used - asked[i + 3], math.min(used, sum[key]))
        end
      end
      if ok then
        values[key] = pack_numbers(used, start)
        lent_of[key], lent_since[key] = sum[key], start
      end
    end
    if found[key] and settled > 0 then
      -- So that what takes write is told from what they leave: they may make it the same again as it was found.
      found[key] = values[key]
      call("SET", keys[key], found[key], "KEEPTTL")
    end
    at = at + 5 + 4 * settled
  end

  -- Takes up to `portion` from what is left, and writes the bucket if it is another one than it was found. Gives the tokens
  -- taken, then the bucket's numbers.
  local function close(key, limit, capacity, portion, date, changed)
    if data[limit] == TOKENS then
      local tokens, part, parts, time, expires = stored_tokens(key, limit)
      tokens, part, time = refilled_tokens(limit, tokens, part, parts, time)
      local granted = math.max(math.min(portion, tokens), 0)
      if granted > 0 then add(key, date, granted) end
      -- It expires when it is full without leases.
      data[limit + 1] = capacity
      if changed then write_tokens(key, limit, tokens - granted, part, time, expires) end
      return granted, tokens - granted, part, time - now
    end
    local ok, used, start = false
    if values[key] then ok, used, start = pcall(read_spent, values[key]) end
    -- What is granted of a period that is over could never be spent.
    if not ok or start + data[limit + 3] <= now then return 0, 0, 0 end
    local granted = math.max(math.min(portion, capacity - used), 0)
    if granted > 0 then add(key, date, granted) end
    if changed then call("SET", keys[key], pack_numbers(used + granted, start), "KEEPTTL") end
    return granted, used + granted, start
  end

  close_leases = function()
    for row = 1, #rows do
      local at = rows[row]
      local key, limit, life, portion, settled = asked[at], asked[at + 1], asked[at + 2], asked[at + 3], asked[at + 4]
      local value = stored(key)
      local written = value ~= found[key]
      if written then values[key] = value end
      local changed = written or portion > 0 or settled > 0
      -- In steps of a quarter of their lives, so that a bucket has few of them to remember.
      local step = math.ceil(life / 4)
      local date = now + 2 * life + step - (now + 2 * life) % step
      local granted, first, second, third = close(key, limit, capacities[row], portion, date, changed)
      if changed and values[key] then
        write_leases(key)
        found[key] = stored(key)
        values[key] = found[key]
      end
      told = told + 1
      reply[told] = sum[key]
      if portion > 0 then
        reply[told + 1], reply[told + 2], reply[told + 3], reply[told + 4] = granted, date, first, second
        told = told + 4
        if third then
          told = told + 1
          reply[told] = third
        end
      end
    end
  end
end

local take_period, take_together, write_all
local cursor = 1 + FIELDS * data[1] + 1
for number = 1, data[cursor] do
  local head = data[cursor + 1]
  if head == 0 then
    -- The most usual take: it wants hits of one token bucket, which no other take of the batch names.
    take_usual(data[cursor + 2], data[cursor + 3], data[cursor + 4])
    cursor = cursor + 4
  elseif head <= 2 then
    if not take_period then
      local _
      _, _, take_period = open_periods()
    end
    take_period(data[cursor + 2], data[cursor + 3], data[cursor + 4], head == 2)
    cursor = cursor + 4
  else
    if not take_together then take_together, write_all = open_books() end
    local dry = (head - 3) % 2
    local last = cursor + 1 + 2 * (head - 3 - dry)
    take_together(number, cursor + 2, last, dry)
    cursor = last
  end
end
if write_all then write_all() end
if close_leases then close_leases() end

return pack_numbers(reply)
