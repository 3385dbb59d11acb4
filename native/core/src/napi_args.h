// Arguments of addon functions, checked: what is wrong becomes a TypeError or a RangeError that names the argument.
//
// Plain Node-API: a hit costs tens of nanoseconds here, and every wrapper object would show.
#pragma once

#include <node_api.h>

#include <cmath>
#include <cstdint>
#include <string>

namespace holdfast {

constexpr double kSafeIntegerMax = 9007199254740991.0;

inline void throwType(napi_env env, const char* name, const char* what) {
  napi_throw_type_error(env, "ERR_INVALID_ARG_TYPE", (std::string(name) + " must be " + what).c_str());
}
inline void throwRange(napi_env env, const char* name, const char* what) {
  napi_throw_range_error(env, "ERR_OUT_OF_RANGE", (std::string(name) + " must be " + what).c_str());
}

inline bool getNumber(napi_env env, napi_value value, const char* name, double* out) {
  if (napi_get_value_double(env, value, out) == napi_ok) return true;
  throwType(env, name, "a number");
  return false;
}

// A safe integer in [min, max].
inline bool getInteger(napi_env env, napi_value value, const char* name, int64_t min, int64_t max, int64_t* out) {
  double number;
  if (!getNumber(env, value, name, &number)) return false;
  if (number >= -kSafeIntegerMax && number <= kSafeIntegerMax) {
    const auto integer = static_cast<int64_t>(number);
    if (static_cast<double>(integer) == number && integer >= min && integer <= max) {
      *out = integer;
      return true;
    }
  }
  throwRange(env, name,
             ("an integer from " + std::to_string(min) + " to " + std::to_string(max) + ", not " +
              (std::isfinite(number) ? std::to_string(number) : "infinite or NaN"))
                 .c_str());
  return false;
}

inline bool getInt64(napi_env env, napi_value value, const char* name, int64_t* out) {
  bool lossless;
  if (napi_get_value_bigint_int64(env, value, out, &lossless) != napi_ok) {
    throwType(env, name, "a bigint");
    return false;
  }
  if (lossless) return true;
  throwRange(env, name, "a bigint of 64 bits");
  return false;
}

inline bool getBoolean(napi_env env, napi_value value, const char* name, bool* out) {
  if (napi_get_value_bool(env, value, out) == napi_ok) return true;
  throwType(env, name, "a boolean");
  return false;
}

// `lengthElements` counts elements of the given type.
inline bool getTypedArray(napi_env env, napi_value value, const char* name, napi_typedarray_type type, const char* what,
                          void** data, size_t* lengthElements) {
  napi_typedarray_type actual;
  if (napi_get_typedarray_info(env, value, &actual, lengthElements, data, nullptr, nullptr) == napi_ok &&
      actual == type) {
    return true;
  }
  throwType(env, name, what);
  return false;
}
inline bool getBytes(napi_env env, napi_value value, const char* name, uint8_t** data, size_t* lengthBytes) {
  return getTypedArray(env, value, name, napi_uint8_array, "a Uint8Array", reinterpret_cast<void**>(data), lengthBytes);
}

inline napi_value toNumber(napi_env env, double value) {
  napi_value result = nullptr;
  napi_create_double(env, value, &result);
  return result;
}
inline napi_value toInt32(napi_env env, int32_t value) {
  napi_value result = nullptr;
  napi_create_int32(env, value, &result);
  return result;
}
inline napi_value toBoolean(napi_env env, bool value) {
  napi_value result = nullptr;
  napi_get_boolean(env, value, &result);
  return result;
}

// Sets object[name] to a function; `data` is what the callback gets. Returns the function, null when the environment
// refused.
inline napi_value addFunction(napi_env env, napi_value object, const char* name, napi_callback callback, void* data) {
  napi_value function = nullptr;
  if (napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, data, &function) != napi_ok) return nullptr;
  if (napi_set_named_property(env, object, name, function) != napi_ok) return nullptr;
  return function;
}

}  // namespace holdfast
