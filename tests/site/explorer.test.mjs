// The rejection explorer in a browser. Run by test_explorer.py, which writes the page and what it must show.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';

const FOLDER = process.env.EXPLORER;
const AXE = createRequire(import.meta.url).resolve('axe-core/axe.min.js');
const EXPECTED = JSON.parse(fs.readFileSync(path.join(FOLDER, 'expected.json'), 'utf8'));
const READINGS = ['coverage', 'risk', 'interval', 'answered', 'declined', 'wrong', 'lost'];

let browser;
before(async () => {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu', '--no-first-run'],
  });
});
after(() => browser?.close());

async function open(settings = {}) {
  const context = await browser.newContext({ viewport: { width: 900, height: 900 }, ...settings });
  const tab = await context.newPage();
  const trouble = [];
  tab.on('pageerror', (error) => trouble.push(String(error)));
  tab.on('request', (request) => /^(file|data):/.test(request.url()) || trouble.push(request.url()));
  await tab.goto(`file://${path.join(FOLDER, 'page.html')}`);
  const explorers = tab.locator('.rejection-explorer');
  return { context, tab, trouble, first: explorers.first(), second: explorers.last() };
}

const part = (explorer, name) => explorer.locator(`[data-part="${name}"]`);
const read = (explorer) => explorer.evaluate((root, names) => Object.fromEntries(
  names.map((name) => [name, root.querySelector(`[data-part="${name}"]`).textContent])), READINGS);

/** Whether the shown texts say these numbers, shares to a tenth of a percent. */
function agrees(shown, row, where) {
  for (const name of READINGS.filter((key) => key !== 'interval' || row.interval || !row.answered)) {
    if (row[name] === null) {
      assert.equal(shown[name], '–', `${where}: ${name}`);
      continue;
    }
    const scale = ['coverage', 'risk', 'interval'].includes(name) ? 100 : 1;
    const numbers = shown[name].match(/[\d.]+/g).map(Number);
    [row[name]].flat().forEach((value, i) => {
      const off = Math.abs(numbers[i] - scale * value);
      assert.ok(off <= (scale === 1 ? 0 : 0.0500001), `${where}: ${name} is ${shown[name]}, not ${row[name]}`);
    });
  }
}

/** Walk the slider from "answer all" to "decline all" with the arrow key. */
async function walk(explorer, tab, rows, where) {
  await part(explorer, 'slider').focus();
  await tab.keyboard.press('Home');
  for (const [step, row] of rows.entries()) {
    if (step) await tab.keyboard.press('ArrowRight');
    agrees(await read(explorer), row, `${where}, step ${step}`);
  }
}

test('arrow keys move through every threshold, with the numbers of Python; explorers do not touch each other', async () => {
  const { context, tab, trouble, first, second } = await open();
  await walk(second, tab, EXPECTED.soft, 'soft errors');
  const untouched = await read(second);
  for (const [name, { all, open: some }] of Object.entries(EXPECTED.models)) {
    await part(first, 'model').selectOption({ label: name });
    await part(first, 'group').selectOption('all');
    await walk(first, tab, all, name);
    await part(first, 'group').selectOption('open');
    await walk(first, tab, some, `${name}, open questions`);
  }
  assert.deepEqual(await read(second), untouched);
  assert.deepEqual(trouble, []);
  await context.close();
});

test('the curve is the exact one, and the marker stands on it', async () => {
  const { context, first } = await open();
  for (const [name, { curve, guaranteed }] of Object.entries(EXPECTED.models)) {
    await part(first, 'model').selectOption({ label: name });
    await part(first, 'all').click();
    await part(first, 'guaranteed').click();
    const { d, top, at } = await first.evaluate((root) => ({
      d: root.querySelector('[data-part="curve"]').getAttribute('d'),
      top: parseFloat(root.querySelector('[data-part="heights"] text').textContent) / 100,
      at: ['cx', 'cy'].map((key) => Number(root.querySelector('[data-part="marker"]').getAttribute(key))),
    }));
    const points = d.slice(1).split('L').map((pair) => pair.split(' ').map(Number));
    assert.equal(points.length, curve.length);
    points.forEach(([x, y], i) => {
      assert.ok(Math.abs(x - 300 * (i + 1) / curve.length) <= 0.051, `${name}: x of point ${i}`);
      assert.ok(Math.abs(y - 160 * (1 - curve[i] / top)) <= 0.051, `${name}: y of point ${i}`);
    });
    assert.ok(Math.abs(parseFloat((await read(first)).coverage) - 100 * guaranteed) <= 0.0500001, `${name}: guarantee`);
    const [x, y] = points[Math.round(guaranteed * curve.length) - 1];
    assert.ok(Math.hypot(at[0] - 44 - x, at[1] - 20 - y) < 0.2, `${name}: marker at ${at}`);
  }
  await context.close();
});

test('the declined are listed as text, page by page, and the end of a move is announced', async () => {
  const { context, tab, first } = await open();
  await part(first, 'slider').focus();
  await tab.keyboard.press('End');
  const items = part(first, 'list').locator('li');
  assert.equal(await items.count(), 20);
  await tab.waitForTimeout(700);
  assert.match(await part(first, 'live').textContent(), /^0 questions answered, 60 declined; risk –/);
  await part(first, 'more').press('Enter');
  await part(first, 'more').press('Enter');
  assert.equal(await items.count(), 60);
  assert.ok(await part(first, 'more').isHidden());
  assert.ok(await part(first, 'region').evaluate((node) => node === document.activeElement), 'the focus is lost');
  assert.equal(await items.filter({ hasText: "</script><img src=x onerror='window.broken = 1'>" }).count(), 1);
  assert.equal(await items.filter({ hasText: 'right is “<b>lung</b>”' }).count(), 60);
  assert.equal(await tab.evaluate(() => window.broken), undefined);
  await part(first, 'all').press('Space');
  assert.equal(await part(first, 'heading').textContent(), 'Nothing is declined');
  assert.ok(await part(first, 'region').isHidden());
  await context.close();
});

for (const theme of ['light', 'dark']) {
  test(`${theme} theme: axe finds nothing, and it fits a small phone`, async () => {
    const { context, tab, first } = await open();
    await tab.evaluate((name) => { document.documentElement.dataset.theme = name; }, theme);
    await tab.addScriptTag({ path: AXE });
    const found = await tab.evaluate(async () => {
      const { violations } = await window.axe.run('main', { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa'] });
      return violations.map((v) => `${v.id} ×${v.nodes.length}: ${v.nodes[0].html.slice(0, 160)}`);
    });
    assert.deepEqual(found, []);
    await tab.setViewportSize({ width: 360, height: 800 });
    assert.ok(await first.isVisible());
    assert.ok(await tab.evaluate(() => document.documentElement.scrollWidth <= innerWidth), 'wider than a phone');
    await context.close();
  });
}

test('without scripts and on paper the drawing is seen, else the explorer', async () => {
  for (const [settings, media, live] of [[{}, 'screen', true], [{}, 'print', false], [{ javaScriptEnabled: false }, 'screen', false]]) {
    const { context, tab, first } = await open(settings);
    await tab.emulateMedia({ media });
    assert.equal(await first.isVisible(), live, `${media}: explorer`);
    assert.equal(await tab.locator('figure img').first().isVisible(), !live, `${media}: drawing`);
    assert.ok(await tab.locator('figcaption').first().isVisible());
    await context.close();
  }
});
