#pragma once

#include <exception>
#include <string>

// Null where call() succeeds, else what it threw, until the next call.
template <class Call>
const char* error_of(Call call) {
  static std::string message;
  try {
    call();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
