// Draw what the page is of.

function start() {
  const overview = JSON.parse(document.getElementById("overview").textContent);
  const blocks = new Blocks();
  const view = overview.run ? runView(overview.run, blocks) : evaluationView(overview.evaluation, blocks);
  const page = document.getElementById("page");
  page.replaceChildren(element("h1", {}, document.title), ...present(view));
}

start();
