#!/bin/sh
# Builds the program and its plug-ins; needs `pip install 'wasix-dl[build]'`.
set -e
dlrun cc -O2 host.c -o host.wasm
dlrun cc -O2 -shared shout.c -o shout.so
dlrun c++ -O2 -shared backwards.cpp -o backwards.so
