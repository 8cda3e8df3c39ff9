if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
-- Any new value asks anew.
obj.metadata.annotations["tidings.dev/enable-requested-at"] = os.date("!%Y-%m-%dT%XZ")
return obj
