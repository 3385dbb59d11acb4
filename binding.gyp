# cmake-js is the one native build. This file only delegates to it, for tools that look for binding.gyp.
{
  "targets": [
    {
      "target_name": "holdfast_native",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake_js",
          "inputs": ["scripts/build-native.mjs"],
          "outputs": ["native/core/build/Release/core.node"],
          "action": ["node", "scripts/build-native.mjs"]
        }
      ]
    }
  ]
}
