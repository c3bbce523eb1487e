"Packaging. All settings are in settings.ini: edit there, not here."
from configparser import ConfigParser
from pathlib import Path
from shlex import split

from setuptools import find_packages, setup

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
lib = cfg['lib_name']

pythons = ['3.11', '3.12', '3.13']
licences = {'apache2': 'Apache-2.0'}
statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature', '7 - Inactive']
extras = {name: cfg[f'{name}_requirements'].split() for name in ('data', 'bench')}
extras['dev'] = cfg['dev_requirements'].split() + extras['data']

setup(
    name=lib,
    version=cfg['version'],
    description=cfg['description'],
    keywords=cfg['keywords'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    license=licences[cfg['license']],
    url=cfg['git_url'],
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    classifiers=[
        f'Development Status :: {statuses[int(cfg["status"]) - 1]}',
        f'Intended Audience :: {cfg["audience"]}',
        f'Natural Language :: {cfg["language"]}',
        *(f'Programming Language :: Python :: {v}' for v in pythons[pythons.index(cfg['min_python']):]),
    ],
    packages=find_packages(include=[lib, f'{lib}.*']),
    package_data={lib: ['*.npz']},
    python_requires=f'>={cfg["min_python"]}',
    install_requires=split(cfg['requirements']),
    extras_require=extras,
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{lib}={lib}._modidx:d']},
    zip_safe=False,
)
