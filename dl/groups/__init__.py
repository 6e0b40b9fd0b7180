"""The threads of a program: their instances of every module, and how they enter and leave guest code."""
