import Foundation
import Testing
import VMCore

/// The soft engine beside KVM, instruction by instruction, on the built-in guests.
@Suite(.enabled(if: KVM.isUsable, "KVM isn't usable here"), .serialized) struct LockStepTests {
    // Guests without interrupts: what KVM's step does at a delivery, an IRET and a HLT differs from host to host.
    // Landings compare the two engines in the others, by the digests of the anchors.
    @Test(arguments: [
        ("hello", ""), ("churn", "rounds=2"), ("smc", "rounds=50"), ("paging", "rounds=5"), ("triple", ""),
    ])
    func guestsStepAlike(_ guest: String, _ parameters: String) throws {
        let system = try KVMSystem()
        let capabilities = try SelfTests(system: system).capabilities()
        let found = try #require(BuiltInGuest.named(guest))
        var configuration = MachineConfiguration(image: found.guestImage(commandLine: parameters),
                                                 memoryBytes: BuiltInGuest.memoryBytes, wallClockStart: 0)
        configuration.timestamps = found.timestamps
        let built = try configuration.build(on: .kvm(system, capabilities))
        let other = try configuration.build(on: .kvm(system, capabilities))
        let soft = try SoftEngine(memory: other.engine.memory, model: built.model)
        soft.trapped = built.sites.trapped(by: built.timestamps)
        try soft.setState(other.engine.state())
        let engine = LockStepEngine(reference: built.engine, subject: soft)
        let serial = try SerialPort(.script(SerialScript(parsing: "100ms \"quit\\r\"")), console: 1)
        var options = LiveOptions()
        options.deadline = .seconds(20)
        let live = LiveEnvironment(platform: built.platform, serial: serial, engine: engine, options: options)
        let machine = Machine(engine: engine, environment: live)
        let ending = try machine.run()
        #expect(ending == (guest == "triple" ? .tripleFault : .debugExit(0)))
        #expect(engine.steps > 0)
        #expect(MemoryDigest.ofAll(built.engine.memory, kind: .masked) == MemoryDigest.ofAll(soft.memory, kind: .masked))
        #expect(try built.engine.state() == soft.state())
    }
}
