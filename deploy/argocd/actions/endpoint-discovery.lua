local signing = obj.spec.signing or {}
-- A key of one's own is rotated by its owner; these schemes rotate none.
local fixed = signing.secretRef ~= nil or signing.scheme == "GitHub" or signing.scheme == "None"
local disabled = false
for _, condition in ipairs((obj.status or {}).conditions or {}) do
  disabled = disabled or (condition.type == "Delivering" and condition.reason == "Disabled")
end
local suspended = obj.spec.suspend == true
return {
  suspend = { disabled = suspended },
  resume = { disabled = not suspended },
  rotate = { disabled = fixed },
  enable = { disabled = not disabled },
}
