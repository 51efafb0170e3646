import ArgumentParser
import VMCore

/// `--engine`, for every command that runs a guest. Out of sight until the soft engine executes all that its CPU model
/// has: today it ends with an error that names the instruction.
struct EngineOption: ParsableArguments {
    @Option(name: .customLong("engine"),
            help: ArgumentHelp("What executes the guest: kvm, or soft, a processor in software.", valueName: "kvm|soft",
                               visibility: .private))
    var kind = EngineKind.kvm
}

extension EngineKind: ExpressibleByArgument {}
