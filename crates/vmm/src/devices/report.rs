//! Where devices report errors that the guest was told of, such as a failed disk write.

use std::sync::{Arc, OnceLock};

type Sink = Box<dyn Fn(&str, &str) + Send + Sync>;

/// A handle that every device has a clone of. Reports always go to the log as well.
#[derive(Clone, Default)]
pub struct Reports(Arc<OnceLock<Sink>>);

impl Reports {
    /// Sets who is called with the device's name and the message. Only the first call counts.
    pub fn set_sink(&self, sink: impl Fn(&str, &str) + Send + Sync + 'static) {
        // A second sink would be a second owner of the VM, which there is not.
        let _ = self.0.set(Box::new(sink));
    }

    /// Reports an error of `device`.
    pub fn report(&self, device: &str, message: &str) {
        tracing::warn!(device, message, "device error passed to the guest");
        if let Some(sink) = self.0.get() {
            sink(device, message);
        }
    }
}
