#!/usr/bin/env bash
# Installs Debian's Chromium for the browser's tests, where this user may. Ends with 0 if there is one.
set -euo pipefail

command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null && exit 0
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 1
export DEBIAN_FRONTEND=noninteractive
timeout 60 apt-get update -qq >/dev/null
timeout 90 apt-get install -qq -y --no-install-recommends chromium >/dev/null
