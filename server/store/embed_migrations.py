#!/usr/bin/env python3
"""embed_migrations.py - turn migrations/NNNN_name.sql into the C table that store.c applies.

usage: embed_migrations.py OUTPUT.c FILE.sql ...

Files must be numbered 0001, 0002, .. without a gap, because the number is the database's user_version.
"""
import os
import sys


def main():
    output, files = sys.argv[1], sorted(sys.argv[2:], key=os.path.basename)
    lines = ['/* Made by embed_migrations.py from migrations/. */', '#include "store/store_int.h"', '',
             'const sv_migration sv_migrations[] = {']
    for number, path in enumerate(files, 1):
        name = os.path.basename(path)
        if not name.startswith('%04d_' % number):
            sys.exit('migrations must be numbered without a gap: expected %04d_..., found %s' % (number, name))
        lines.append('    { %d, "%s",' % (number, name))
        with open(path, encoding='ascii') as f:
            for line in f.read().splitlines():
                lines.append('      "%s\\n"' % line.replace('\\', '\\\\').replace('"', '\\"'))
        lines.append('    },')
    lines += ['    { 0, NULL, NULL },', '};', '']
    with open(output, 'w', encoding='ascii') as f:
        f.write('\n'.join(lines))


main()
