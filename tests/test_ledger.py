"The ledger of claims: the file, its rule on made-up records, what the saved pages show of it, and the numbers in their prose."
import ast
import csv
import html
import json
import os
import re
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from cxr_acgan.ledger import (AUDITS, DOCUMENTS, VERDICTS, Claim, ClaimsTable, _row, answer, claims_table, evaluate, judge, ledger_chart,
                              ledger_summary, load_claims, num, verdict)
from cxr_acgan.results import RunRecord, device_name

ROOT = Path(__file__).resolve().parents[1]
PAPERS = ROOT / 'nbs' / 'papers'
CLAIMS = load_claims(PAPERS / 'claims.csv')
TEXTS = ROOT.parent / 'shared' / 'papers'
PAGES = sorted(p.stem for p in PAPERS.glob('*.ipynb'))
OTHERS = sorted(p.relative_to(ROOT / 'nbs').with_suffix('').as_posix() for folder in ('', 'foundations') for p in (ROOT / 'nbs' / folder).glob('*.ipynb'))


@pytest.fixture(scope='module')
def judged():
    "The committed claims against the committed records."
    start = time.perf_counter()
    found = judge(CLAIMS, ROOT / 'results')
    assert time.perf_counter() - start < 20
    return found


def cells(page): return json.loads((PAPERS / f'{page}.ipynb' if page in PAGES else ROOT / 'nbs' / f'{page}.ipynb').read_text())['cells']


def source(cell): return ''.join(cell['source'])


def outputs(cell, *kinds):
    "Saved outputs of a cell as text."
    for output in cell.get('outputs', ()):
        data = output.get('data', {'text/plain': output.get('text', '')})
        for kind in kinds:
            if kind in data: yield ''.join(data[kind])


ROW = re.compile(r'<tr id="claim-([\w-]+)" data-verdict="([\w-]+)".*?</tr>', re.S)

def shown(page):
    "{id: (verdict, the row as HTML)} of a page's saved outputs."
    rows = {}
    for cell in cells(page):
        for text in outputs(cell, 'text/html'):
            for match in ROW.finditer(text):
                assert match[1] not in rows, f'{match[1]} twice on {page}'
                rows[match[1]] = match[2].replace('-', ' '), match[0]
    return rows


def expected(page): return [c.id for c in CLAIMS if page in ('ledger', c.document)]


# the file

def test_every_document_and_every_kind_of_item_has_claims():
    assert {c.document for c in CLAIMS} == set(DOCUMENTS) and len(CLAIMS) >= 60
    for c in CLAIMS:
        assert re.fullmatch(r'[SF]\d', c.item), c.id
        assert c.rule in AUDITS or c.experiment or c.note, c.id


def inventory():
    "The rows of the inventory beside the checkout: {document: items}."
    path = TEXTS / 'INVENTORY.md'
    if not path.is_file(): pytest.skip('no documents beside the checkout at ../shared/papers')
    items = {}
    for part in path.read_text().split('\n## ')[1:]:
        wrong = part.split('Wrong or unclear')[1]
        count = len(re.findall(r'^\d+\. ', part, re.M)), len(re.findall(r'^- ', wrong, re.M))
        items[part.split()[0]] = {f'{letter}{i + 1}' for letter, n in zip('SF', count) for i in range(n)}
    return items


def test_every_row_of_the_inventory_has_a_claim():
    for document, items in inventory().items():
        assert {c.item for c in CLAIMS if c.document == document} == items, document


def plain(text):
    "Text without marks of the extraction and of Markdown, white space made even."
    return re.sub(r'\s+', ' ', re.sub(r'</?b>|[*$]', '', text.replace('$\\pm$', '±'))).replace('( ±', '(±').strip()


@pytest.fixture(scope='module')
def documents():
    "{document: its text}; skipped where the texts are not beside the checkout."
    files = {d: TEXTS / ('carbone_slides.txt' if d == 'carbone' else f'{d}.txt') for d in DOCUMENTS}
    if not all(f.is_file() for f in files.values()): pytest.skip('no documents beside the checkout at ../shared/papers')
    return {d: plain(f.read_text()) for d, f in files.items()}


def test_quotes_are_in_the_documents(documents):
    for c in CLAIMS:
        for quote in [c.quote] + [c.against] * (c.rule == 'contradiction'):
            assert plain(quote) in documents[c.document], f'{c.id}: {quote}'


def test_printed_values_are_in_the_documents(documents):
    "The value of a number or fact stands, as a number of its own, in its quote or else in its document; that of a threshold is ours, and its note says why."
    for c in CLAIMS:
        assert c.kind != 'threshold' or c.note and c.value is not None, c.id
        if c.value is None or c.kind == 'threshold' or c.note and c.value in (0, 0.5, 1): continue
        assert printed(c, documents[c.document]), f'{c.id}: {c.value} is not printed'


def printed(c, document):
    text = f"{c.quote.replace('*', ' ')} {document}".replace(',', '').replace('0.66 3743793964386', '0.663743793964386')
    written = {f'{c.value:g}', f'{c.value:.2f}', f'{c.value:.3f}', f'{c.value:.4f}', repr(c.value), f'{c.value:.20f}'.rstrip('0').rstrip('.')}
    if c.value == int(c.value): written.add(f'{c.value:.0f}')
    if 0 < c.value < 1: written.add(f'{100 * c.value:g}%')
    if c.id in ('carbone-concatenated', 'srm-class-loss'): written |= {'1025', '0.6905013918876648'}
    return any(re.search(rf'(?<![\d.]){re.escape(w)}(?!\.?\d)', text) for w in written)


def test_a_mistyped_value_is_seen(documents):
    for c in CLAIMS:
        if c.id in ('kumar-cnn-accuracy', 'singh-t1-accuracy'): assert printed(c, documents[c.document]) and not printed(replace(c, value=0.58), documents[c.document])


def test_anchors_are_headings():
    slug = lambda h: re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', h)).lower().strip()))
    headings = {}
    for path in (ROOT / 'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' in path.parts: continue
        page = path.relative_to(ROOT / 'nbs').with_name(re.sub(r'^\d+[a-zA-Z0-9]*_', '', path.stem)).as_posix()
        text = '\n'.join(source(c) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'markdown')
        headings[page] = {slug(h) for h in re.findall(r'^#+ (.*)$', text, re.M)} | {''}
    for c in CLAIMS:
        page, _, section = c.anchor.partition('#')
        if page == 'papers/carbone' and page not in headings: continue
        assert section in headings[page], f'{c.id}: no section {section} on {page}'


BLANK = dict.fromkeys(Claim.__dataclass_fields__, '') | dict(id='noori-x', document='noori', item='S1', quote='a quote', kind='number', note='why')

def write_claims(path, *rows):
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, list(BLANK))
        writer.writeheader()
        writer.writerows(BLANK | row for row in rows)
    return path


@pytest.mark.parametrize('row, message', [
    (dict(quote=' '.join('x' * 16)), 'a quote has 1 to 15 words'), (dict(kind='guess'), 'no such kind'), (dict(rule='hope'), 'no such rule'),
    (dict(document='paper'), 'no such document'), (dict(better='up'), 'better is higher or lower'), (dict(note=''), 'a note must say why'),
    (dict(experiment='noori', value=''), 'the printed value is missing'), (dict(value='many'), 'cannot be read')])
def test_a_wrong_line_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=f'line 2 of the claims.*{message}'): load_claims(write_claims(tmp_path / 'c.csv', row))


def test_an_id_twice_and_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match='same id: noori-x'): load_claims(write_claims(tmp_path / 'c.csv', {}, {}))
    with pytest.raises(FileNotFoundError, match='give the path of claims.csv'): load_claims(tmp_path / 'none.csv')
    with pytest.raises(ValueError, match="unknown document 'paper'"): claims_table('paper')


# the rule, on records made up for it

def record(root, experiment, seed, metrics, **settings):
    history = pd.DataFrame({'epoch': [0, 1], 'loss': [0.6, 0.4], 'val_loss': [0.5, 0.45]})
    RunRecord(experiment, 'cpu', seed, {'batch_size': 16} | settings, {'n': 100}, metrics, history).write(root)


def scores(accuracy, low=0.0, high=1.0): return {'scores': {'test': {'n': 624, 'accuracy': {'value': accuracy, 'low': low, 'high': high}}}}


def claim(**changes):
    return replace(Claim(**BLANK | dict(value=0.85, tolerance=None, experiment='a', field='scores.test.accuracy', better='higher', note='')), **changes)


@pytest.mark.parametrize('ours, name', [((0.84, 0.82, 0.86), 'reproduced'), ((0.90, 0.88, 0.92), 'better'), ((0.80, 0.78, 0.82), 'not reproduced')])
def test_verdict_of_one_run(tmp_path, ours, name):
    record(tmp_path, 'a', 0, scores(*ours))
    found = answer(claim(), tmp_path)
    assert (found.value, found.low, found.high, found.n, found.seeds, found.profile) == (*ours, 624, 1, 'cpu')
    assert verdict(claim(), found) == name


def test_verdict_over_seeds(tmp_path):
    for seed, value in enumerate((0.80, 0.82, 0.84)):
        record(tmp_path, 'exact', seed, scores(value, value - 1e-6, value + 1e-6))
        record(tmp_path, 'a', seed, scores(value, value - 0.01959964, value + 0.01959964))
    found = answer(claim(experiment='exact'), tmp_path)  # Student's t with 2 degrees of freedom: 4.3027 * 0.02 / sqrt(3)
    assert (found.seeds, round(found.low, 4), round(found.high, 4)) == (3, 0.7703, 0.8697)
    found = answer(claim(), tmp_path)  # 0.01**2 of the images and 0.02**2 / 3 of the seeds: 6.125 degrees of freedom
    half = 0.037193
    assert found.how == 'within runs and over seeds' and abs(found.low - (0.82 - half)) < 1e-4 and abs(found.high - (0.82 + half)) < 1e-4
    assert verdict(claim(), found) == 'reproduced' and verdict(claim(value=0.9), found) == 'not reproduced'
    assert verdict(claim(value=0.7), found) == 'better' and verdict(claim(value=0.7, better='lower'), found) == 'not reproduced'


def test_tolerance_where_there_is_no_interval(tmp_path):
    record(tmp_path, 'a', 0, {'logged': [{'update': 0, 'd_loss': 0.53}, {'update': 100, 'd_loss': 0.2}]})
    near = claim(field='logged.0.d_loss', value=0.5, better='')
    assert verdict(near, answer(near, tmp_path)) == 'not reproduced'
    assert verdict(replace(near, tolerance=0.05), answer(near, tmp_path)) == 'reproduced'
    assert answer(near, tmp_path).n == 16


def test_not_run_and_untestable(tmp_path):
    assert verdict(claim(), answer(claim(), tmp_path)) == 'not run'
    opinion = claim(experiment='', note='nobody knows')
    assert verdict(opinion, answer(opinion, tmp_path)) == 'untestable'
    record(tmp_path, 'a', 0, scores(0.85))
    assert verdict(claim(), answer(claim(profile='paper'), tmp_path)) == 'not run'
    against = claim(kind='comparison', against='b')
    assert verdict(against, answer(against, tmp_path)) == 'not run'
    second = claim(experiment='b a')
    assert answer(second, tmp_path).experiment == 'a'


@pytest.mark.parametrize('field', ['scores.test.recall', 'scores.val.accuracy', 'scores.test', 'logged.0.d_loss', 'settings.rate'])
def test_a_field_that_a_record_lacks_is_an_error(tmp_path, field):
    record(tmp_path, 'a', 0, scores(0.85))
    with pytest.raises(ValueError, match=f'record a/cpu-seed0 has no field {field}: correct the claim or the record'): answer(claim(field=field), tmp_path)
    with pytest.raises(ValueError, match=f'has no field {field}'): num('a', field, root=tmp_path)


def test_a_run_that_diverged_leaves_a_claim_open(tmp_path):
    record(tmp_path, 'a', 0, scores(0.85))
    record(tmp_path, 'b', 0, {'diverged_at': 37})
    for asked in (claim(experiment='b'), claim(kind='comparison', against='b')):
        found = answer(asked, tmp_path)
        assert verdict(asked, found) == 'not run' and found.how == 'b, seed 0, diverged at update 37'


def test_an_update_that_was_not_logged_is_an_error(tmp_path):
    record(tmp_path, 'a', 0, {'logged': [{'update': 0, 'd_loss': 0.5}, {'update': 100, 'd_loss': 0.2}]})
    assert answer(claim(field='logged.-1.d_loss'), tmp_path).value == 0.2
    with pytest.raises(ValueError, match='no field logged.1.d_loss'): answer(claim(field='logged.1.d_loss'), tmp_path)


def test_comparisons(tmp_path):
    more = claim(kind='comparison', against='b', value=None)
    for seed, (a, b) in enumerate(((0.90, 0.80), (0.91, 0.80), (0.92, 0.83))):
        record(tmp_path, 'a', seed, scores(a))
        record(tmp_path, 'b', seed, scores(b))
    record(tmp_path, 'b', 7, scores(0.1))  # a seed without partner
    found = answer(more, tmp_path)
    assert round(found.value, 6) == 0.1 and found.low > 0 and found.seeds == 3 and verdict(more, found) == 'reproduced'
    less = claim(kind='comparison', experiment='b', against='a', value=None)
    assert verdict(less, answer(less, tmp_path)) == 'not reproduced'
    other = claim(against='a:scores.test.n', value=0)
    assert answer(other, tmp_path).value < -600
    double = claim(kind='comparison', against='b a b', value=None)  # (a - b) - (a - b)
    assert abs(answer(double, tmp_path).value) < 1e-12


def test_one_pair_with_predictions_is_bootstrapped_over_patients(tmp_path):
    label, patient = [0, 1] * 40, list(range(80))
    good, bad = [0.1, 0.9] * 40, [0.6, 0.9] * 40
    for name, p in (('a', good), ('b', bad)):
        record(tmp_path, name, 0, scores(0.5) | {'predictions': {'test': {'label': label, 'patient': patient, 'probability': p}}})
    found = answer(claim(kind='comparison', against='b', value=None), tmp_path)
    assert found.value == 0.5 and found.n == 80 and found.how == 'paired bootstrap over patients' and 0.3 < found.low <= 0.5


def test_readers(tmp_path):
    record(tmp_path, 'a', 0, {'best_epoch': 1, 'fitted': 80, 'scores': {'train': {'n': 5216, 'confusion': [[1326, 15], [743, 3132]]}},
                              'discriminator': {'fake': {'n': 200, 'source_above_half': 50}},
                              'printed_fit': {'n': 9, 'values': {'d_loss': {'mean': 1.0, 'low': 0.5, 'high': 1.5}}},
                              'epochs': [{'n': 10, 'frechet_distance': d} for d in (90, 50, 52, 40)]})
    read = lambda rule, field: answer(claim(rule=rule, field=field), tmp_path)
    precision, recall = (read('documents_order', f'scores.train.confusion {name} 0') for name in ('precision', 'recall'))
    assert (round(precision.value, 2), round(recall.value, 2)) == (0.99, 0.64) and recall.low < 0.64 < recall.high  # singh's Table 1
    assert read('documents_order', 'scores.train.confusion support 0').value == 2069
    share = read('share', 'discriminator.fake.source_above_half discriminator.fake.n')
    assert share.value == 0.25 and share.n == 200 and share.low < 0.25 < share.high
    assert round(read('loss_fall', '').value, 6) == 0.2
    weighted, macro = (read('documents_order', f'scores.train.confusion {kind} precision').value for kind in ('weighted', 'macro'))
    assert (round(weighted, 2), round(macro, 2)) == (0.88, 0.90)  # singh's Table 1
    line = claim(rule='update_range', field='d_loss', value=1.4)
    assert verdict(line, answer(line, tmp_path)) == 'reproduced' and answer(line, tmp_path).how == 'middle 95 % of single updates'
    rise = claim(rule='least_fall', field='', kind='comparison', value=None)
    assert answer(rise, tmp_path).value == -2 and verdict(rise, answer(rise, tmp_path)) == 'not reproduced'
    assert verdict(replace(rise, tolerance=2.5), answer(rise, tmp_path)) == 'reproduced'


def test_a_threshold_is_not_shown_as_printed(tmp_path):
    record(tmp_path, 'a', 0, scores(0.3))
    for kind, cell in (('threshold', '-'), ('number', '0.5')):
        line = claim(kind=kind, value=0.5)
        shown = ClaimsTable(judge([line], tmp_path))._repr_html_()
        assert f'data-label="printed">{cell}<' in shown and ('taken as 0.5' in shown) == (kind == 'threshold')


def test_single_batches_are_held_against_batches(tmp_path):
    "singh's lines: the range of the batches logged, over all seeds; at update 0 the mean alone, by the tolerance."
    for seed, shift in enumerate((0.0, 0.02, 0.04)):
        rows = [(0, 0.5), (1000, 0.2), (1900, 0.3), (1999, 0.25)]
        record(tmp_path, 'a', seed, {'logged': [{'update': u, 'd_loss': v + shift} for u, v in rows], 'updates': 2000})
    line = claim(rule='logged_range', field='1000 d_loss', value=0.335, better='')
    found = answer(line, tmp_path)
    assert (round(found.value, 6), found.low, round(found.high, 6), found.n, found.seeds) == (0.27, 0.2, 0.34, 16, 3)
    assert verdict(line, found) == 'reproduced' and verdict(replace(line, value=0.345), found) == 'not reproduced'
    first = claim(rule='logged_batch', field='0 d_loss', value=0.55, tolerance=0.04, better='')
    found = answer(first, tmp_path)
    assert (round(found.value, 6), found.low, found.how) == (0.52, None, 'the batch of update 0, one a seed, no interval')
    assert verdict(first, found) == 'reproduced' and verdict(replace(first, tolerance=0.02), found) == 'not reproduced'
    with pytest.raises(ValueError, match='no field logged from 5000 on'): answer(claim(rule='logged_range', field='5000 d_loss'), tmp_path)
    assert answer(claim(field='updates'), tmp_path).how == 'the same in all runs'


def test_readers_of_carbone(tmp_path):
    tested = lambda value: {'test': {'n': 400, 'balanced_accuracy': {'value': value, 'low': value - 0.05, 'high': value + 0.05}}}
    distances = {'inception': {'repository': {'n': 60, 'frechet_distance': 130.0}}}
    for name, spaces, missing in (('a', distances, {}), ('b', {}, {'inception': 'no weights'})):
        record(tmp_path, name, 0, {'checkpoints': [{'update': 800} | tested(0.5), {'update': 1600} | tested(0.6)], 'on_test': {'update': 1600},
                                   'on_validation': {'update': 800}, 'spaces': spaces, 'missing': missing})
    read = lambda **changes: answer(claim(**changes), tmp_path)
    assert [read(rule='checkpoint', field=f'on_{name}').value for name in ('test', 'validation')] == [0.6, 0.5]
    assert read(rule='checkpoint', field='on_test').low == 0.6 - 0.05
    distance = dict(rule='space', field='inception repository.frechet_distance')
    assert read(**distance).value == 130 and verdict(claim(experiment='b', **distance), read(experiment='b', **distance)) == 'not run'
    with pytest.raises(ValueError, match='no field spaces.inception.clean'): read(rule='space', field='inception clean')


def test_carbones_scores_are_of_the_update_that_was_chosen(tmp_path):
    record(tmp_path, 'carbone', 0, {'scores': {'train': [{'update': u, 'n': 128, 'g_loss': g} for u, g in ((0, 1.8), (800, 0.45), (1600, 0.9))]}})
    line = claim(experiment='carbone', rule='chosen', field='train g_loss', value=0.44, tolerance=0.05, better='')
    found = answer(line, tmp_path)
    assert verdict(line, found) == 'not run' and 'record carbone_choice' in ClaimsTable([(line, found, 'not run')])._repr_html_()
    record(tmp_path, 'carbone_choice', 0, {'on_test': {'update': 800}})
    found = answer(line, tmp_path)
    assert (found.value, found.n) == (0.45, 128) and verdict(line, found) == 'reproduced'
    with pytest.raises(ValueError, match='no field scores.train.800.d_loss'): answer(replace(line, field='train d_loss'), tmp_path)


@pytest.mark.parametrize('rule, changes, agrees', [
    ('calculation', dict(value=2432, field='5*5*3*32 + 32'), True), ('calculation', dict(value=2432, field='1*1*3*32 + 32'), False),
    ('calculation', dict(value=11, field='100*624/5856', tolerance=0.5), True), ('condition', dict(field='2 < 3 and 1 == 1'), True),
    ('condition', dict(field='log(2) > 1'), False), ('contradiction', dict(quote='five', against='six'), False),
    ('contradiction', dict(quote='Five.', against='five'), True)])
def test_audits(tmp_path, rule, changes, agrees):
    audited = claim(rule=rule, kind='fault', **changes)
    found = answer(audited, tmp_path)
    assert found.agrees is agrees and verdict(audited, found) == ('reproduced' if agrees else 'error in the document')


@pytest.mark.parametrize('text', ["__import__('os')", 'a + 1', '(1).real', '1 +', '1/0', "'a' * 9", '[1]', 'log(x=1)', 'lambda: 1'])
def test_only_arithmetic_is_calculated(text):
    with pytest.raises(ValueError, match='no arithmetic|cannot be calculated'): evaluate(text)


def test_each_verdict_is_one_the_rule_can_give(judged):
    assert {name for _, _, name in judged} <= set(VERDICTS)
    table = ledger_summary(judged)
    assert table.loc['all', 'claims'] == len(CLAIMS) and table['claims'].iloc[:-1].sum() == len(CLAIMS)
    figure = ledger_chart(judged)
    written = [int(t.get_text()) for t in figure.axes[0].texts]
    assert sum(written) == len(CLAIMS)


def test_num(tmp_path):
    record(tmp_path, 'a', 0, scores(0.853, 0.84, 0.871))
    assert num('a', 'scores.test.accuracy', '.2f', root=tmp_path) == '0.85 [0.84, 0.87]'
    assert num('b', 'scores.test.accuracy', root=tmp_path) == 'not run'


# what the saved pages show

@pytest.mark.parametrize('page', PAGES)
def test_every_id_is_on_its_page(page):
    assert list(shown(page)) == expected(page), f'{page}: run the page again and save its outputs'


@pytest.mark.parametrize('page', PAGES)
def test_verdicts_on_the_page_follow_from_the_records(page, judged):
    saved = shown(page)
    for c, found, name in judged:
        if c.id not in expected(page): continue
        told, row = saved[c.id]
        assert told == name, f'{page}, {c.id}: the page says {told}, the records say {name}: run the page again'
        assert row == _row(c, found, name), f'{page}, {c.id}: value, interval, n or note are not those of the records: run the page again'
        assert f'>{name}</span>' in row and html.escape(c.quote) in row and f'href="../{c.anchor.split("#")[0]}.html' in row
        if found.value is not None and c.rule not in AUDITS:
            value = f'{found.value:,.0f}' if abs(found.value) >= 1000 else f'{found.value:.4g}'
            assert value in row and found.experiment in row and f'{found.seeds} seed' in row, f'{page}, {c.id}: ours is {value}'


@pytest.mark.parametrize('document', DOCUMENTS)
def test_each_section_names_its_verdicts(document, judged):
    "Under each section of a page to which the ledger links stand the verdicts of the claims that link there."
    found = {}
    for cell in cells(document):
        for text in outputs(cell, 'text/html'):
            if match := re.search(r'<p class="verdicts" data-section="([^"]+)">(.*?)</p>', text, re.S): found[match[1]] = match[2]
    wanted = defaultdict(lambda: defaultdict(set))
    for c, _, name in judged:
        page, _, section = c.anchor.partition('#')
        if page == f'papers/{document}': wanted[section][name].add(c.id)
    assert found.keys() == wanted.keys()
    for section, by_verdict in wanted.items():
        said = {m[1]: set(re.findall(r'#claim-([\w-]+)"', m[2])) for m in re.finditer(r'<strong>([\w ]+)</strong>(.*?)(?=<strong>|$)', found[section], re.S)}
        assert said == by_verdict, f'{document}#{section}: run the page again'


@pytest.mark.parametrize('page', [*PAGES, *OTHERS])
def test_no_log_of_the_run_is_saved(page):
    assert not [o for c in cells(page) for o in c.get('outputs', ()) if o.get('name') == 'stderr']


# numbers in prose

NUMBER = re.compile(r'(?<![\w.])(?<![A-Za-z]-)\.?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?')

def numbers(text):
    "Numbers of a text as written without commas: not years, not whole ones up to 12, not parts of names, links and code."
    text = re.sub(r'`[^`]*`|\]\([^)]*\)|https?://\S+', ' ', text)
    for match in NUMBER.finditer(text):
        word = match[0].rstrip(',')
        if re.fullmatch(r'(19|20)\d\d', word) and word != '2000' or re.fullmatch(r'\d|1[0-2]', word): continue
        yield word.replace(',', '')


def prose(page):
    "What a reader reads that a person wrote: Markdown, captions, alt texts, and the fixed parts of what code displays as Markdown or prints."
    for cell in cells(page):
        text = source(cell)
        if cell['cell_type'] == 'markdown': yield text
        else:
            yield '\n'.join(line for line in text.splitlines() if line.startswith(('#| fig-cap', '#| fig-alt')))
            yield from typed_strings(ast.parse(text.replace('%', '#%') if text.startswith('%') else text))


def typed_strings(tree):
    "String constants inside the arguments of `Markdown` and `print`: also those in names and functions of the cell that they use; no format specifications."
    made, seen = defaultdict(list), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            for target in getattr(node, 'targets', None) or [node.target]: made[getattr(target, 'id', None)].append(node.value)
        if isinstance(node, ast.FunctionDef): made[node.name] += [n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value]
    def strings(node):
        if isinstance(node, ast.Constant): yield from [node.value] if isinstance(node.value, str) and not re.fullmatch(r'\+?\.\d[fg]', node.value) else []
        elif isinstance(node, ast.FormattedValue): yield from strings(node.value)
        elif isinstance(node, ast.Subscript): yield from strings(node.value)
        elif isinstance(node, ast.Compare): return
        elif isinstance(node, ast.Name):
            if node.id not in seen:
                seen.add(node.id)
                for value in made[node.id]: yield from strings(value)
        else:
            for child in ast.iter_child_nodes(node): yield from strings(child)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') in ('Markdown', 'print'):
            for part in (*node.args, *node.keywords): yield from strings(part)


@pytest.mark.parametrize('code', ['Markdown("AUC 0.871")', 'Markdown(f"{x}" + " against 0.871")', 'text = f"it is {x:.2f} of 0.871"\nMarkdown(text)', 'print("AUC 0.871" if x else "")',
                                  'def say(x):\n    return f"{x:.3f}, not 0.871"\nMarkdown(say(1))'])
def test_a_number_in_code_that_is_shown_is_seen(code):
    assert [n for text in typed_strings(ast.parse(code)) for n in numbers(text)] == ['0.871']


def allowed():
    "{page: {number: (source, reason)}} of numbers.csv"
    rows = defaultdict(dict)
    with open(PAPERS / 'numbers.csv', newline='') as file:
        for row in csv.DictReader(file): rows[row['page']][row['number']] = row['source'], row['reason']
    return rows


def claimed(page): return {n for c in CLAIMS if page == c.document for n in numbers(f'{c.quote} {c.where} ' + (f'{c.value:g}' if c.value is not None else ''))}


def leaves(value):
    "The numbers in nested lists and dicts."
    for v in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
        if isinstance(v, (dict, list)): yield from leaves(v)
        elif isinstance(v, (int, float)) and not isinstance(v, bool): yield float(v)


def literals(code): return {float(n.value) for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Constant) and isinstance(n.value, (int, float))}


def page_literals(page): return {n for c in cells(page) if c['cell_type'] == 'code' and not source(c).startswith('%') for n in literals(source(c))}


@pytest.fixture(scope='module')
def known_values():
    "(settings of records and numbers in the library's code, counts of images)."
    runs = [json.loads(p.read_text()) for p in (ROOT / 'results').glob('*/*-seed*/run.json')]
    settings = {n for run in runs for n in leaves(run['settings'])} | {n for p in (ROOT / 'cxr_acgan').glob('*.py') for n in literals(p.read_text())}
    return settings, {float(n) for run in runs for n in [run['dataset'].get('n') or 0, *run['dataset'].get('class_counts', {}).values()]}


@pytest.mark.parametrize('page', OTHERS)
def test_no_number_in_the_prose_of_other_pages_comes_from_nowhere(page, known_values):
    "Each is a setting in the page's code, the library's or a record, a count of images, one of a document, an output of the page, or numbers.csv says what else it is."
    listed, used = allowed(), {n for text in prose(page) for n in numbers(text)}
    printed = re.sub(r'(?<=\d)[,_](?=\d)', '', ' '.join(t for cell in cells(page) for t in outputs(cell, 'text/plain', 'text/html')))
    elsewhere = {float(n) for known in PAGES for n in {*listed[known]} | claimed(known)}
    known = page_literals(page).union(elsewhere, *known_values)
    typed = {n for n in used - set(listed[page]) if float(n) not in known} - set(NUMBER.findall(printed))
    assert not typed, f'{page}: {sorted(typed)} typed in prose: take a result from its record (num), or list it in numbers.csv'
    assert set(listed[page]) <= used, f'{page}: {sorted(set(listed[page]) - used)} of numbers.csv is no longer there'


@pytest.mark.parametrize('page', PAGES)
def test_no_number_in_prose_comes_from_nowhere(page):
    "Each is printed in the document (the ledger, or numbers.csv), or numbers.csv says what else it is."
    known, used = allowed()[page], {n for text in prose(page) for n in numbers(text)}
    typed = used - set(known) - claimed(page)
    assert not typed, f'{page}: {sorted(typed)} typed in prose: take a result from its record (num), or list a printed number in numbers.csv'
    assert set(known) <= used, f'{page}: {sorted(set(known) - used)} of numbers.csv is no longer there'


def test_where_numbers_come_from(known_values):
    "What numbers.csv says of a number holds: computed on the page, a count of the data in the records, a setting in code or a record, in a work of the references, or a reason is given."
    keys = set(re.findall(r'^@\w+\{([\w-]+),', (ROOT / 'nbs' / 'references.bib').read_text(encoding='utf-8'), flags=re.M))
    runs = [json.loads(p.read_text()) for p in (ROOT / 'results').glob('*/*-seed*/run.json')]
    counts = {f'{n}' for run in runs for n in [run['dataset'].get('n'), *run['dataset'].get('class_counts', {}).values()]}
    real = json.loads((ROOT / 'results' / 'quality_real' / 'cpu-seed0' / 'metrics.json').read_text())['test']
    counts |= {f'{n}' for n in [real['n'], *(pair[0] for pair in real['intra']['n'])]}
    for page, rows in allowed().items():
        printed = ' '.join(t for cell in cells(page) for t in outputs(cell, 'text/plain', 'text/html'))
        printed += ' '.join(line for cell in cells(page) for line in source(cell).splitlines() if line.lstrip().startswith('assert '))
        for number, (kind, reason) in rows.items():
            assert kind in ('document', 'computed', 'data', 'setting', 'literature', 'definition'), (page, number)
            assert reason or kind in ('document', 'data'), f'{page}, {number}: give a reason'
            if kind == 'computed': assert number in {n.rstrip(',') for n in NUMBER.findall(re.sub(r'(?<=\d)[,_](?=\d)', '', printed))}, f'{page}, {number}: no output or assertion shows it'
            if kind == 'setting': assert float(number) in known_values[0] | page_literals(page), f'{page}, {number}: in no code and in no settings'
            if kind == 'literature': assert (works := set(re.findall(r'@(\w+)', reason))) and works <= keys, f'{page}, {number}: name its work in references.bib as @key'
            if kind == 'data': assert number in counts, f'{page}, {number}: no record counts so many'


def test_numbers_said_to_be_printed_are(documents):
    for page, rows in allowed().items():
        text = documents.get(page, ' '.join(documents.values())).replace(',', '')
        for number, (kind, _) in rows.items():
            if kind != 'document': continue
            written = {number, f'{float(number):g}', f'{float(number):.4f}', f'{float(number) / 100:g}'}  # 1e-4 as 0.0001, 94 % as 0.94
            written |= {w for w in re.findall(r'\d\.\d{5,}', text) if re.fullmatch(r'\d\.\d{4}', number) and f'{float(w):.4f}' == number}  # of a printed log
            assert any(re.search(rf'(?<![\d.]){re.escape(w)}(?!\d)', text) for w in written), f'{page}, {number} is not in the document'


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no processor affinity")
def test_a_record_counts_the_cores_that_its_run_could_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    if "core" not in device_name():
        pytest.skip("an accelerator is named in the processor's place")
    assert device_name().endswith(", 1 core")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 6})
    assert device_name().endswith(", 3 cores")
