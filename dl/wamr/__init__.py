"""WAMR's shared-everything programs: a root, and libraries that it opens through the functions of `env`."""
