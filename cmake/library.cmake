# The library gala and its CMake package: find_package(gala), target gala::gala.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
option(BUILD_SHARED_LIBS "The library gala as a shared library" ON)

add_library(gala ${kernels})
if(BUILD_SHARED_LIBS)
  foreach(part gala_cpu gala_cuda)
    if(TARGET ${part})
      target_compile_definitions(${part} PRIVATE "GALA_API=__attribute__((visibility(\"default\")))")
    endif()
  endforeach()
endif()
set_target_properties(gala PROPERTIES
  LINKER_LANGUAGE CXX
  VERSION ${PROJECT_VERSION}
  SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
target_compile_features(gala INTERFACE cxx_std_17)
target_include_directories(gala INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
if(NOT cuda_missing)
  target_link_libraries(gala PRIVATE CUDA::cudart_static)
  target_link_options(gala PRIVATE -Wl,--exclude-libs,ALL)  # CUDA's runtime stays inside
endif()

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/gala)
install(TARGETS gala EXPORT gala)
install(FILES csrc/gala.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/gala)
install(EXPORT gala NAMESPACE gala:: FILE gala-targets.cmake DESTINATION ${package})
configure_package_config_file(cmake/gala-config.cmake.in gala-config.cmake INSTALL_DESTINATION ${package})
write_basic_package_version_file(gala-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/gala-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/gala-config-version.cmake
  DESTINATION ${package})
