// A picture from the camera, in a dialog.

import { byId } from "./dom.js";

export const cameraIsThere = () => Boolean(navigator.mediaDevices?.getUserMedia);

/** Set the dialog up; `taken` gets each picture as a File. */
export function setUpCamera(taken) {
  const dialog = byId("camera-dialog");
  const video = byId("video");
  let stream = null;

  const stop = () => {
    stream?.getTracks().forEach((track) => track.stop());
    stream = video.srcObject = null;
    byId("shoot").disabled = true;
  };

  byId("camera").addEventListener("click", async () => {
    byId("camera-error").textContent = "";
    dialog.showModal();
    try {
      const opened = await navigator.mediaDevices.getUserMedia({ video: { facingMode: { ideal: "environment" } } });
      stream = opened;
      if (!dialog.open) {
        stop();
        return;
      }
      video.srcObject = stream;
    } catch (error) {
      byId("camera-error").textContent = `The camera cannot be used: ${error.message}`;
    }
  });
  video.addEventListener("loadeddata", () => {
    byId("shoot").disabled = false;
    byId("shoot").focus();
  });
  byId("shoot").addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => taken(new File([blob], "camera.jpg", { type: blob.type })), "image/jpeg", 0.92);
    dialog.close();
  });
  byId("camera-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", stop);
}
