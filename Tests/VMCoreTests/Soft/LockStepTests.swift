import Foundation
import Testing
import VMCore

/// The soft engine beside KVM, instruction by instruction, on the built-in guests.
@Suite(.enabled(if: KVM.isUsable, "KVM isn't usable here"), .serialized) struct LockStepTests {
    @Test(arguments: [
        ("hello", ""), ("ticker", "ticks=20"), ("spin", "ticks=20"), ("lost-update", "ticks=20"), ("echo", ""),
        ("strings", "rounds=1"), ("churn", "rounds=2"), ("smc", "rounds=50"), ("nested-irq", "ticks=30"),
        ("nmi", "ipis=10 ticks=10"), ("paging", "rounds=5"), ("triple", ""), ("realmode", ""), ("clocks", "rounds=100"),
    ])
    func guestsStepAlike(_ guest: String, _ parameters: String) throws {
        let system = try KVMSystem()
        let capabilities = try SelfTests(system: system).capabilities()
        let found = try #require(BuiltInGuest.named(guest))
        var configuration = MachineConfiguration(image: found.guestImage(commandLine: parameters),
                                                 memoryBytes: BuiltInGuest.memoryBytes, wallClockStart: 0)
        configuration.timestamps = found.timestamps
        let built = try configuration.build(system: system, capabilities: capabilities)
        configuration.engine = .soft
        let other = try configuration.build(system: system, capabilities: capabilities)
        let soft = try #require(other.engine as? SoftEngine)
        let engine = LockStepEngine(reference: built.engine, subject: soft)
        let serial = try SerialPort(.script(SerialScript(parsing: "100ms \"quit\\r\"")), console: 1)
        var options = LiveOptions()
        options.deadline = .seconds(20)
        let live = LiveEnvironment(platform: built.platform, serial: serial, engine: engine, options: options)
        let machine = Machine(engine: engine, environment: live)
        let ending = try machine.run()
        print("\(guest): \(engine.steps) steps, \(ending)")
        for kind in [DigestKind.masked] {
            #expect(MemoryDigest.ofAll(built.engine.memory, kind: kind) == MemoryDigest.ofAll(soft.memory, kind: kind))
        }
        #expect(try built.engine.state() == soft.state())
    }
}
