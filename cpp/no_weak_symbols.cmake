# Fails when an object compiled for one instruction set defines weak symbols (see CMakeLists.txt).
# Run as: cmake -DNM=nm -DOBJECTS="a.o;b.o" -P no_weak_symbols.cmake
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND "${NM}" -C --defined-only "${object}" OUTPUT_VARIABLE symbols RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "${NM} could not read ${object}")
  endif()
  string(REGEX MATCHALL "[0-9a-f]+ [WwVvu] [^\n]+" weak "${symbols}")
  # The exception personality's reference is data without code, equal in every object.
  list(FILTER weak EXCLUDE REGEX "DW\\.ref\\.")
  if(weak)
    string(REPLACE ";" "\n  " weak "${weak}")
    message(FATAL_ERROR "${object} defines weak symbols:\n  ${weak}\nGive them internal linkage (anonymous "
                        "namespace, static) and use no templates or inline functions of std:: there.")
  endif()
endforeach()
