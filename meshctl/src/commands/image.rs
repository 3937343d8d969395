//! Images of a node.

use vdc_api::{ImagePull, ImageTag, PullEvent, endpoint};

use super::Run;
use super::workload::{access, image_text};
use crate::cli::{ImageVerb, Pull};
use crate::failure::{Exit, Failure};
use crate::progress::Bar;

impl Run<'_> {
    pub(super) async fn image_verb(&mut self, verb: ImageVerb) -> Result<(), Failure> {
        match verb {
            ImageVerb::Pull(args) | ImageVerb::Import(args) => self.image_pull(args).await,
            ImageVerb::Ls(on) => {
                let (client, vdc) = self.to(on);
                let list = client.read(endpoint::IMAGE_LIST, &[&vdc], &()).await?;
                self.print(&list)
            }
            ImageVerb::Tag(args) => {
                let (client, vdc) = self.to(args.on);
                let request = ImageTag { image: args.image, tag: args.tag };
                let view = client.change(self.terminal, endpoint::IMAGE_TAG, &[&vdc], &request).await?;
                self.print(&view)
            }
            ImageVerb::Rm(args) => {
                let (client, vdc) = self.to(args.on);
                self.each(&args.names, async |terminal, name| {
                    client.change(terminal, endpoint::IMAGE_REMOVE, &[&vdc, name], &()).await
                })
                .await
            }
            ImageVerb::Clean(on) => {
                let (client, vdc) = self.to(on);
                let freed = client.change(self.terminal, endpoint::IMAGE_CLEAN, &[&vdc], &()).await?;
                self.print(&freed)
            }
        }
    }

    async fn image_pull(&mut self, args: Pull) -> Result<(), Failure> {
        let (client, vdc) = self.to(args.on);
        let image = image_text(&args.image, client.is_remote())?;
        let request = ImagePull { image, tag: args.tag, registry: access(args.registry, false)? };
        let mut bar = Bar::new(self.terminal.err, self.terminal.err_is_terminal());
        let mut events = client.stream(endpoint::IMAGE_PULL, &[&vdc], &(), &request).await?;
        loop {
            let event = events.next().await;
            if !matches!(event, Ok(Some(PullEvent::Progress(_)))) {
                self.terminal.note(bar.end());
            }
            match event? {
                Some(PullEvent::Progress(progress)) => self.terminal.note(&bar.text(&progress)),
                Some(PullEvent::Done(view)) => return self.print(&view),
                None => return Err(Failure::new("meshd ended the pull without a result").exit(Exit::NoDaemon)),
            }
        }
    }
}
