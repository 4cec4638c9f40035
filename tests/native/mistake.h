// The mistake that this run of the program makes (tests/support/mistakes.py); 0: none.
#pragma once

#include <cstdlib>

namespace bp {

inline const int mistake = [] {
    const char* number = getenv("MISTAKE");
    return number ? atoi(number) : 0;
}();

}  // namespace bp
