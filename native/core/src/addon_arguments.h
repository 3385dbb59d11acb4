// What the Node-API boundaries of the addons share: arguments that are checked, and functions that answer those that
// don't fit with a TypeError, never a crash.
#pragma once

#include <node_api.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <utility>

namespace holdfast {

struct Fault {
  const char* what;
};

// Of one call. An addon's own kinds of argument come in a class that is derived from this one.
template <size_t kMax>
class CheckedArguments {
 public:
  CheckedArguments(napi_env env, napi_callback_info info) : env_(env) {
    napi_get_cb_info(env, info, &count_, values_, nullptr, nullptr);
  }
  napi_value operator[](size_t index) const { return values_[index]; }

  double Integer(size_t index, double max) const {
    double value = 0;
    if (index >= count_ || napi_get_value_double(env_, values_[index], &value) != napi_ok || !(value >= 0) ||
        value > max || value != std::floor(value)) {
      throw Fault{"an argument is not an integer in its range"};
    }
    return value;
  }
  uint32_t U32(size_t index, double max = 4294967295.0) const { return static_cast<uint32_t>(Integer(index, max)); }
  uint64_t U53(size_t index) const { return static_cast<uint64_t>(Integer(index, 9007199254740991.0)); }

 protected:
  // What an external of this tag points to.
  void* Tagged(size_t index, const napi_type_tag& tag, const char* fault) const {
    void* data = nullptr;
    bool tagged = false;
    if (index >= count_ || napi_check_object_type_tag(env_, values_[index], &tag, &tagged) != napi_ok || !tagged ||
        napi_get_value_external(env_, values_[index], &data) != napi_ok) {
      throw Fault{fault};
    }
    return data;
  }
  template <typename Element>
  std::span<Element> Elements(size_t index, napi_typedarray_type wanted, const char* fault) const {
    napi_typedarray_type type;
    size_t length = 0;
    void* data = nullptr;
    if (index >= count_ ||
        napi_get_typedarray_info(env_, values_[index], &type, &length, &data, nullptr, nullptr) != napi_ok ||
        type != wanted) {
      throw Fault{fault};
    }
    return {static_cast<Element*>(data), length};
  }
  std::span<uint8_t> Uint8Array(size_t index) const {
    return Elements<uint8_t>(index, napi_uint8_array, "an argument is not a Uint8Array");
  }

  napi_env env_;
  size_t count_ = kMax;
  napi_value values_[kMax] = {};
};

// Every exported function.
template <typename Arguments, napi_value (*body)(napi_env, const Arguments&)>
napi_value GuardedCall(napi_env env, napi_callback_info info) {
  try {
    return body(env, Arguments(env, info));
  } catch (const Fault& fault) {
    napi_throw_type_error(env, "ERR_INVALID_ARG_VALUE", fault.what);
  } catch (const std::exception& error) {
    napi_throw_error(env, nullptr, error.what());
  }
  return nullptr;
}

inline void ExportFunctions(napi_env env, napi_value exports,
                            std::span<const std::pair<const char*, napi_callback>> functions) {
  for (const auto& [name, callback] : functions) {
    napi_value function;
    napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, nullptr, &function);
    napi_set_named_property(env, exports, name, function);
  }
}

}  // namespace holdfast
