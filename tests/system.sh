#!/usr/bin/env bash
# The programs that some tests need and that are no Python packages: installed by apt where it works, as root. Without
# them those tests skip, each with its reason.
set -u
packages=()
test -x /usr/bin/chromium || packages+=(chromium)
compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null || packages+=(postgresql)
test ${#packages[@]} = 0 && exit 0
if test "$(id -u)" != 0 || ! command -v apt-get >/dev/null; then
  echo "not installed, for want of root or apt-get: ${packages[*]}"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null ||
  echo "apt-get did not install ${packages[*]}; the tests that need them skip"
