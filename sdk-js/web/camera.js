// @ts-check
/** The camera, where there is one. */

import { find } from "./draw.js";

/**
 * Show the button, if there is a camera.
 *
 * @param {(pixels: ImageData) => void} taken
 * @param {(message: string) => void} refused
 */
export async function withCamera(taken, refused) {
  const found = await navigator.mediaDevices?.enumerateDevices().catch(() => []);
  if (!found?.some(({ kind }) => kind === "videoinput")) return;
  const button = find("#camera");
  const dialog = /** @type {HTMLDialogElement} */ (find("#viewfinder"));
  const video = /** @type {HTMLVideoElement} */ (find("#video"));
  button.hidden = false;
  button.addEventListener("click", async () => {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch {
      refused("The camera cannot be used: allow it for this page, or choose a file.");
      return;
    }
    const tracks = stream.getTracks();
    video.srcObject = stream;
    dialog.returnValue = "cancel";
    dialog.showModal();
    dialog.addEventListener(
      "close",
      () => {
        const pixels = dialog.returnValue === "take" ? frame(video) : null;
        for (const track of tracks) track.stop();
        video.srcObject = null;
        if (pixels) taken(pixels);
      },
      { once: true },
    );
  });
}

/** The middle of what the camera sees, as a square; null before its first picture. */
function frame(/** @type {HTMLVideoElement} */ video) {
  const { videoWidth: width, videoHeight: height } = video;
  const side = Math.min(width, height);
  const context = side ? new OffscreenCanvas(side, side).getContext("2d") : null;
  context?.drawImage(video, (width - side) / 2, (height - side) / 2, side, side, 0, 0, side, side);
  return context?.getImageData(0, 0, side, side) ?? null;
}
