import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
  build: {
    target: "es2022",
    modulePreload: { polyfill: false }, // a browser without it loads the same files, a little later
    // The runtime changes seldom: in a file of its own, browsers keep it while the app changes.
    rolldownOptions: { output: { advancedChunks: { groups: [{ name: "onnxruntime", test: /onnxruntime/ }] } } },
  },
});
