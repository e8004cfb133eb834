"""Scripts that a Valkey runs for `ValkeyStore`: each is one step that nobody sees half of."""

WRITE = """
local answered = server_call('GET', KEYS[2])
if answered then return answered end
local user, data, size, chunk, is_new, start = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6]
local newest = server_call('HGET', KEYS[1], 'newest')
local version, timeline, first, last
if newest then
    version, timeline, first, last = string.match(newest, '(%d+) (%d+) (%d+) (%d+)')
end
local known = tonumber(ARGV[9])
if newest and known then
    if version ~= ARGV[8] or tonumber(last) < known then return user .. ' ' .. version .. ' ' .. last .. ' 1' end
    data = string.sub(data, (tonumber(last) - known) * size + 1)
end
if not newest or is_new == '1' then
    version = newest and tonumber(version) + 1 or ARGV[8] or 0
    timeline = server_call('HINCRBY', KEYS[1], 'timelines', 1)
    if is_new == '1' then first = tonumber(start) else first = known or 0 end
    last = first
end
first, last = tonumber(first), tonumber(last)
local partial = math.max(first, math.floor(last / chunk) * chunk)
if last > partial then
    data = server_call('HGET', KEYS[1], 'c:' .. timeline .. ':' .. math.floor(partial / chunk)) .. data
end
local at, place = partial, 1
while place <= #data do
    local number = math.floor(at / chunk)
    local count = (number + 1) * chunk - at
    server_call('HSET', KEYS[1], 'c:' .. timeline .. ':' .. number, string.sub(data, place, place + count * size - 1))
    at, place = at + count, place + count * size
end
last = partial + #data / size
local stands = timeline .. ' ' .. string.format('%.0f %.0f', first, last)
server_call('HSET', KEYS[1], 'newest', version .. ' ' .. stands, 'v:' .. version, stands)
local answer = user .. ' ' .. version .. ' ' .. string.format('%.0f', last)
server_call('SET', KEYS[2], answer, 'EX', ARGV[7])
return answer
""".replace("server_call", "redis.call")

PUBLISH = """
local users, staged, source, as_of, count = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local changed, withheld = {}, {}
for i = 1, count do
    local user, expected = ARGV[4 + 2 * i], ARGV[5 + 2 * i]
    if tonumber(server_call('HGET', KEYS[3], user) or '-1') >= as_of then withheld[user] = true
    elseif (server_call('HGET', users .. user, 'newest') or '') ~= expected then table.insert(changed, user) end
end
if #changed > 0 then return changed end
for i = 1, count do
    local user = ARGV[4 + 2 * i]
    if withheld[user] then
        server_call('DEL', staged .. user)
    else
        server_call('RENAME', staged .. user, users .. user)
        server_call('PERSIST', users .. user)
        server_call('SADD', KEYS[2], user)
    end
end
for i = 6 + 2 * count, #ARGV do
    server_call('DEL', users .. ARGV[i])
    server_call('SREM', KEYS[2], ARGV[i])
end
server_call('HSET', KEYS[1], 'source', source, 'as_of_us', ARGV[4])
return {}
""".replace("server_call", "redis.call")
