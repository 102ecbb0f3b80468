// The frame: theme, contents, copying, what is opened for print.
function startTheme() {
  const box = one(".theme");
  box.hidden = false;
  const set = (name) => {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
  };
  const kept = (() => { try { return localStorage.getItem("deltapass-theme"); } catch { return null; } })();
  const start = one(`input[value="${["light", "dark"].includes(kept) ? kept : "auto"}"]`, box);
  start.checked = true;
  set(start.value);
  box.addEventListener("change", (event) => {
    set(event.target.value);
    try { localStorage.setItem("deltapass-theme", event.target.value); } catch { /* a page from a file may not */ }
  });
}

function startContents() {
  const details = one(".toc details");
  const wide = matchMedia("(min-width: 1080px)");
  const settle = () => { details.open = wide.matches; };
  wide.addEventListener("change", settle);
  settle();
  const links = new Map(all(".toc a").map((link) => [link.hash.slice(1), link]));
  const seen = new Set();
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) seen.add(entry.target); else seen.delete(entry.target);
    }
    const first = [...seen].sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top)[0];
    if (!first) return;
    const link = links.get(first.getAttribute("aria-labelledby").split(" ")[0]);
    for (const other of links.values()) other.removeAttribute("aria-current");
    if (link) link.setAttribute("aria-current", "location");
  }, { rootMargin: "-60px 0px -55% 0px" });
  all("section[aria-labelledby]").forEach((section) => watch.observe(section));
}

function startCopying() {
  for (const button of all(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const pre = one("pre", button.parentElement);
      try {
        await navigator.clipboard.writeText(pre.textContent);
        button.textContent = "Copied";
      } catch {
        const range = document.createRange();
        range.selectNodeContents(pre);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  }
}

function startPrinting() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("main details:not([open]):not(.numbers)");
    opened.forEach((each) => { each.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((each) => { each.open = false; }));
}
