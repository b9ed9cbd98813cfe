// Nothing: see development.cmake.
