#pragma once

#include <node_api.h>

namespace holdfast {

// Adds createCacheMap and openCacheMap.
void addCacheMapFunctions(napi_env env, napi_value exports);

}  // namespace holdfast
