"""Nothing: where Python would keep this module's code, `code_file` keeps that of all others.

Nobody imports it. Installers remove, with a module, the `.pyc` that Python may have made of it, and would leave a file of
another name behind. Who imports it all the same gets an empty module, and the next `dlrun` writes its file again.
"""
