-- Decides a batch of takes in order, each whole. KEYS are the distinct bucket keys of the batch.
-- ARGV[1]  time in microseconds since the epoch, or "" for Redis TIME (tests pass a time; production passes "")
-- ARGV[2]  one flat MessagePack array of integers: see batch.rs, which writes it and reads the reply
-- ARGV[3]  and ARGV[4], if the limits of time zones are in the batch: from when, and before when, their bounds hold; at another
--          time nothing is done, and the reply is now alone
-- returns  one flat MessagePack array of integers: now, then per take: admitted, then per item: fits (+2 if its bucket is as
--          last told in this reply), if it is independent what its bucket held then, and unless told already its bucket
--          after the decision; for a usual take admitted + 2, then its bucket
-- twin     src/bucket.rs and src/bucket/*.rs for the arithmetic, src/store/judge.rs for the decision
--
-- A bucket is stored as MessagePack integers in a row, without an array around them where it has a fixed size:
--   tokens    tokens, fraction, denominator, at_us, ends_s    calendar, fixed   used, start_us
--   sliding   [slot, hits, slot, hits, …], oldest first
-- A token bucket says when its key expires, since a write that leaves the expiry as it is costs Redis a sixth less.
-- All numbers are integers below 2^53, which Lua's doubles hold exactly; (a - a % b) / b divides them without rounding. What
-- is stored under a key but is not a bucket counts as a full one, and is replaced when something is taken. A refusal writes
-- nothing. State is kept in plain tables, one per field, by the key's number: a table per bucket would cost garbage.

local TOKENS, SLIDING = 1, 2                        -- kinds; 3 is a calendar quota or a fixed window
local OVERDRAW, STOP, INDEPENDENT = 8, 16, 24       -- ways to charge; less is all or nothing
local SLOTS = 60                                    -- limit.rs, SLIDING_SLOTS
local FIELDS = 7                                    -- numbers per limit
local MARGIN_S, LONGEST_S = 61, 8000000000          -- a bucket outlives its refill by a minute; no expiry beyond 250 years
local EXACT = 9007199254740992                      -- 2^53
local DAY_US = 86400000000

local call, pcall, unpack_numbers, pack_numbers = redis.call, pcall, cmsgpack.unpack, cmsgpack.pack
local data = unpack_numbers(ARGV[2])
local now
if ARGV[1] == "" then
  local time = call("TIME")
  now = time[1] * 1000000 + time[2]
else
  now = tonumber(ARGV[1])
end
if ARGV[3] and (now < tonumber(ARGV[3]) or now >= tonumber(ARGV[4])) then return pack_numbers({ now }) end

local values = {}
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

local function refilled_tokens(limit, tokens, part, stored_parts, time)
  local capacity, tick, parts = data[limit + 1], data[limit + 2], data[limit + 5]
  if stored_parts ~= parts then part = 0 end
  if tokens < -capacity then tokens = -capacity end
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
  call("SET", KEYS[key], value, "EX", text)
end

local function write_tokens(key, limit, tokens, part, time, expires)
  local parts, missing, full_at = data[limit + 5], data[limit + 1] - tokens, time
  if missing > 0 then
    local rate = data[limit + 3] * parts + data[limit + 4]
    -- Without a rate the time is endless, which the longest life stands for.
    full_at = time + (missing * parts / rate + 1) * data[limit + 2]
  end
  if expires * 1000000 > full_at then
    return call("SET", KEYS[key], pack_numbers(tokens, part, parts, time, expires), "KEEPTTL")
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
      if goes_on then call("SET", KEYS[key], pack_numbers(used, start), "KEEPTTL") else write_spent(key, limit, used, start) end
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

  -- Applies hits to a refilled bucket. Debt ends at one capacity, giving at full.
  local function apply(key, limit, hits, gives)
    local kind, capacity, before = data[limit], data[limit + 1], amount[key]
    local after
    if kind == TOKENS then
      if gives then
        after = before + hits
        if after > capacity then after = capacity end
      else
        after = before - hits
        if after < -capacity then after = before < -capacity and before or -capacity end
      end
    elseif kind == SLIDING then
      return apply_slots(key, limit, hits, gives)
    elseif gives then
      after = before > hits and before - hits or 0
    else
      after = before + hits
      if after > data[limit + 5] then after = data[limit + 5] end
      if after < before then after = before end
    end
    if after == before then return end
    undo = undo + 1
    undo_key[undo], undo_amount[undo], undo_fraction[undo] = key, before, fraction[key]
    amount[key] = after
    if kind == TOKENS and after >= capacity then fraction[key] = 0 end
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
    if kind == TOKENS then
      write_tokens(key, limit, amount[key], fraction[key], at[key], ends[key])
    elseif kind == SLIDING then
      local list = slots[key]
      store(key, pack_numbers(list), life_until(#list > 0 and (list[#list - 1] + SLOTS + 1) * data[limit + 2] or now))
    else
      write_spent(key, limit, amount[key], at[key])
    end
  end

  local function balance(key, limit)
    if data[limit] == TOKENS then return amount[key] end
    return data[limit + 1] - amount[key]
  end

  -- By item: whether it fits, and what its bucket held then.
  local fits, left = {}, {}

  -- Charges a take whose items have not all the same fate.
  local function charge_apart(first, last, wet, admitted, over)
    for item = first, last, 4 do
      local key, limit, hits, op = data[item], data[item + 1], data[item + 2], data[item + 3]
      local gives, fit = op % 8 >= 4, fits[item] == 1
      local charged = fit and admitted
      if op >= INDEPENDENT then charged = true
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
        if kind == TOKENS then refill_tokens(key, limit, fresh)
        elseif kind == SLIDING then refill_slots(key, limit, fresh)
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
      if op > charges then charges = op end
      if fit then
        fits[item] = 1
        if role == 2 then quotas, quota_fits = true, true end
      else
        fits[item], over = 0, true
        if role == 0 then blocked = true
        elseif role == 2 then quotas = true end
      end
      if fit or op >= INDEPENDENT then apply(key, limit, hits, gives) end
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
        if kind == TOKENS then
          reply[told + 1], reply[told + 2], reply[told + 3] = amount[key], fraction[key], at[key] - now
          told = told + 3
        elseif kind == SLIDING then
          local list = slots[key]
          told = told + 1
          reply[told] = #list / 2
          for i = 1, #list do reply[told + i] = list[i] end
          told = told + #list
        else
          reply[told + 1], reply[told + 2] = amount[key], at[key]
          told = told + 2
        end
      end
    end
    if looks > 0 then leave_no_trace() end
  end

  local function write_all()
    for key = 1, #KEYS do
      if dirty[key] then write(key) end
    end
  end

  return take_together, write_all
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

return pack_numbers(reply)
