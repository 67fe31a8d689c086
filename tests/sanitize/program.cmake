# The program `search`, of the core's sources, with their flags and the sanitizers of CLARA_SANITIZE,
# which may be "none".
include(CheckCXXSourceCompiles)

set_source_files_properties(tests/sanitize/cosine.cpp PROPERTIES
  COMPILE_OPTIONS "-O2;-fno-sanitize=all")
add_executable(search tests/sanitize/main.cpp tests/sanitize/search.cpp
  tests/sanitize/bfloat16.cpp tests/sanitize/decoder.cpp tests/sanitize/elementwise.cpp
  tests/sanitize/parallel.cpp tests/sanitize/cosine.cpp
  ${core_sources})
target_include_directories(search PRIVATE csrc)
target_link_libraries(search PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
target_compile_options(search PRIVATE -Wall -Wextra)

if(NOT CLARA_SANITIZE STREQUAL "none")
  set(sanitize "-fsanitize=${CLARA_SANITIZE}")
  set(CMAKE_REQUIRED_FLAGS "${sanitize}")
  check_cxx_source_compiles("int main() { return 0; }" CLARA_SANITIZERS_LINK)
  if(NOT CLARA_SANITIZERS_LINK)
    unset(CLARA_SANITIZERS_LINK CACHE)  # asked again once they are installed
    message(FATAL_ERROR
      "${CMAKE_CXX_COMPILER} cannot link a program with ${sanitize}: install the sanitizers' "
      "libraries for it (libasan, libubsan, libtsan; they come with a distribution's g++)")
  endif()
  target_compile_definitions(search PRIVATE CLARA_SANITIZED)
  target_compile_options(search PRIVATE
    -O1 -g1 -fno-omit-frame-pointer ${sanitize} -fno-sanitize-recover=all)
  target_link_options(search PRIVATE ${sanitize})
endif()
