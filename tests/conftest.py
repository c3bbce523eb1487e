import os
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def cxr_data():
    "The folder $CXR_DATA names; the test is skipped where there is no Kermany set in it."
    folder = os.environ.get('CXR_DATA')
    if not folder: pytest.skip('real data: $CXR_DATA is not set')
    if not (Path(folder) / 'chest_xray' / 'train').is_dir(): pytest.skip(f'real data: $CXR_DATA={folder} holds no chest_xray/train')
    return Path(folder).resolve()
