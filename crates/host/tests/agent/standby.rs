//! A host that is sent to standby.

use godwit_types::ErrorCode;

use super::world::in_a_world;

#[test]
fn a_host_is_switched_off_once_no_vm_is_on_it_and_takes_in_none_meanwhile() {
    in_a_world(|world| async move {
        world.start_vm("", 1).await.unwrap();
        let error = world.standby().await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Refused);
        assert!(error.message.contains("web1 is on it"), "{error}");
        assert!(!world.switch().exists());

        world.stop_vm(true, 10_000).await.unwrap();
        world.standby().await.unwrap();
        assert!(world.switch().exists());
        let error = world.start_vm("", 2).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Refused);
        assert!(error.message.contains("is being switched off"), "{error}");
    });
}

#[test]
fn a_host_that_cannot_be_switched_off_says_why_and_takes_in_vms_as_before() {
    in_a_world(|world| async move {
        std::fs::create_dir(world.switch()).unwrap();
        let error = world.standby().await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Failed);
        assert!(error.message.contains("File exists"), "{error}");
        assert!(error.remedy.unwrap().contains("--standby-command"));
        world.start_vm("", 1).await.unwrap();
        world.stop_vm(true, 10_000).await.unwrap();
    });
}
